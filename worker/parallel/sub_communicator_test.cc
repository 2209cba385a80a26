// Two halves of a group of threads, each a group of its own.
#include "worker/parallel/sub_communicator.h"

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "worker/parallel/local_communicator.h"

namespace terrace {
namespace {

constexpr Duration kLong = std::chrono::seconds(120);      // no rank misses it
constexpr Duration kShort = std::chrono::milliseconds(1);  // for ranks that never come
constexpr uint32_t kRanks = 4, kHalf = 2;

using Group = std::vector<std::unique_ptr<Communicator>>;

std::unique_ptr<Communicator> HalfOf(Communicator& group) {
  return MakeSubCommunicator(group, group.rank() / kHalf * kHalf, kHalf);
}

TEST(SubCommunicator, EachHalfAddsUpItsOwnBetweenCallsOfAll) {
  const Group group = MakeLocalCommunicators(kRanks, kLong);
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&group, rank] {
      const auto half = HalfOf(*group[rank]);
      EXPECT_EQ(half->rank(), rank % kHalf);
      EXPECT_EQ(half->ranks(), kHalf);
      EXPECT_EQ(half->timeout(), kLong);
      for (const size_t count : {size_t{1}, size_t{1000}, size_t{100000}}) {  // at once, and in shares
        std::vector<float> values(count, static_cast<float>(1 + rank));
        EXPECT_EQ(half->AllReduceSum(values), Status());
        EXPECT_EQ(values, std::vector<float>(count, rank < kHalf ? 1 + 2 : 3 + 4)) << "rank " << rank;
        EXPECT_EQ(group[rank]->Barrier(), Status());
      }
      // From the last rank of a half to the other one of it, whose numbers in the group differ.
      std::vector<std::byte> data(1, static_cast<std::byte>(rank));
      EXPECT_EQ(half->rank() == 1 ? half->Send(data, 0) : half->Receive(data, 1), Status());
      EXPECT_EQ(data[0], static_cast<std::byte>(rank / kHalf * kHalf + 1));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(SubCommunicator, ARankThatDoesNotComeIsNamedAsTheGroupNumbersItAndBothAreOver) {
  const Group group = MakeLocalCommunicators(kRanks, kShort);
  const auto half = HalfOf(*group[2]);
  std::vector<float> values(10);
  const Status status = half->AllReduceSum(values);
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_NE(Message(status).find("rank 3 did not take part in all-reduce"), std::string::npos) << status;
  EXPECT_EQ(half->Barrier(), status);
  EXPECT_EQ(group[2]->Barrier(), status);
  const Status late = group[0]->Barrier();
  EXPECT_FALSE(late.ok());
}

TEST(SubCommunicator, AnEndOfTheGroupIsItsEnd) {
  Group group = MakeLocalCommunicators(kRanks, kLong);
  const auto aborted = HalfOf(*group[0]), left = HalfOf(*group[2]);
  aborted->Abort(Cancelled("by the test"));
  EXPECT_EQ(aborted->Barrier(), Cancelled("by the test"));
  EXPECT_EQ(group[0]->Barrier(), Cancelled("by the test"));
  EXPECT_EQ(HalfOf(*group[1])->FindEnded().code(), StatusCode::kUnavailable);
  group[3].reset();
  EXPECT_EQ(left->Barrier().code(), StatusCode::kUnavailable);
}

}  // namespace
}  // namespace terrace
