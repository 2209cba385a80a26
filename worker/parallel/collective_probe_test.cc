#include "worker/parallel/collective_probe.h"

#include "gtest/gtest.h"
#include "worker/parallel/local_communicator.h"

namespace terrace {
namespace {

constexpr Duration kLong = std::chrono::seconds(60);  // no rank misses it
const SumProbeOptions kFew = {.bytes = {4, 64 << 10, 128 << 10}, .rounds = 3};

void ExpectAllSizes(const StatusOr<std::vector<SumSample>>& samples) {
  ASSERT_TRUE(samples.ok()) << samples.status();
  ASSERT_EQ(samples->size(), kFew.bytes.size());
  for (size_t i = 0; i < samples->size(); ++i) {
    EXPECT_EQ((*samples)[i].bytes, kFew.bytes[i]);
    EXPECT_GT((*samples)[i].seconds, 0);
  }
}

TEST(MeasureSums, HasASampleOfEachSizeWhateverCarriesTheMessages) {
  for (const uint32_t ranks : {2u, 3u, 4u}) {
    SCOPED_TRACE(ranks);
    ExpectAllSizes(MeasureSums(MakeLocalCommunicators(ranks, kLong), kFew));
  }
  ExpectAllSizes(MeasureSumsHere(2, kFew));
}

TEST(MeasureSums, AGroupThatHasEndedIsAnErrorAndNoWait) {
  const auto group = MakeLocalCommunicators(2, kLong);
  group[1]->Abort(Unavailable("gone"));
  const Status status = MeasureSums(group, kFew).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status;
}

TEST(MeasureSums, EndsWhenItIsCancelled) {
  SumProbeOptions options = kFew;
  options.is_cancelled = [] { return true; };
  EXPECT_EQ(MeasureSums(MakeLocalCommunicators(2, kLong), options).status().code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace terrace
