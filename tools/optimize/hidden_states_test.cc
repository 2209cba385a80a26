#include "tools/optimize/hidden_states.h"

#include <filesystem>
#include <fstream>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "worker/formats/testing_limits.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

class HiddenStatesTest : public testing::Test {
 protected:
  HiddenStatesTest() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  const fs::path folder_ = fs::path(testing::TempDir()) / "hidden_states";
};

TEST_F(HiddenStatesTest, RowsAreZeroUntilTheyAreWritten) {
  auto states = HiddenStates::Create(folder_, /*tokens=*/5, /*width=*/3);
  ASSERT_TRUE(states.ok()) << states.status();
  const std::vector<float> two = {1, 2, 3, 4, 5, 6};
  ASSERT_EQ(states->Write(3, two), Status());
  std::vector<float> all(15, -1);
  ASSERT_EQ(states->Read(0, all), Status());
  EXPECT_EQ(all, (std::vector<float>{0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6}));
}

TEST_F(HiddenStatesTest, PiecesAreAllRowsInOrder) {
  std::vector<float> all((2 * kPieceTokens + 7) * 2);
  std::iota(all.begin(), all.end(), 0.0f);
  auto states = HiddenStates::Create(folder_, all.size() / 2, /*width=*/2);
  ASSERT_TRUE(states.ok()) << states.status();
  ASSERT_EQ(states->Write(0, all), Status());
  std::vector<float> seen;
  std::vector<size_t> sizes;
  const auto keep = [&](size_t first, std::span<const float> rows) {
    EXPECT_EQ(first, seen.size() / 2);
    seen.insert(seen.end(), rows.begin(), rows.end());
    sizes.push_back(rows.size() / 2);
    return Status();
  };
  ASSERT_EQ(states->EachPiece(keep), Status());
  EXPECT_EQ(seen, all);
  EXPECT_EQ(sizes, (std::vector<size_t>{kPieceTokens, kPieceTokens, 7}));
  EXPECT_EQ(states->EachPiece([](size_t, std::span<const float>) { return Cancelled("enough"); }),
            Cancelled("enough"));
}

TEST_F(HiddenStatesTest, AnotherOneIsOfThatSizeAndApart) {
  auto one = HiddenStates::Create(folder_, 2, 1);
  ASSERT_TRUE(one.ok()) << one.status();
  ASSERT_EQ(one->Write(0, std::vector<float>{1, 2}), Status());
  auto other = one->MakeAnother();
  ASSERT_TRUE(other.ok()) << other.status();
  std::vector<float> rows(2, -1);
  ASSERT_EQ(other->Read(0, rows), Status());
  EXPECT_EQ(rows, std::vector<float>(2));
  ASSERT_EQ(one->Read(0, rows), Status());
  EXPECT_EQ(rows, (std::vector<float>{1, 2}));
  *one = *std::move(other);
  ASSERT_EQ(one->Read(0, rows), Status());
  EXPECT_EQ(rows, std::vector<float>(2));
}

TEST_F(HiddenStatesTest, NothingOfItIsInTheFolder) {
  std::ofstream(folder_ / "hidden-states") << "of a process that was killed";
  const auto states = HiddenStates::Create(folder_, 100, 100);
  ASSERT_TRUE(states.ok()) << states.status();
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(HiddenStatesTest, AFullDiskIsToldBeforeTheWorkWithTheSpaceThatIsWanted) {
  const FileSizeLimit limit(39'999);
  const Status status = HiddenStates::Create(folder_, 100, 100).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
  EXPECT_NE(Message(status).find(Concat(folder_.string(), ": cannot take the space")), std::string::npos)
      << status;
  EXPECT_NE(Message(status).find("40000 bytes"), std::string::npos) << status;
  EXPECT_TRUE(HiddenStates::Create(folder_, 99, 100).ok());
  EXPECT_EQ(HiddenStates::Create(folder_ / "absent", 1, 1).status().code(), StatusCode::kUnavailable);
}

}  // namespace
}  // namespace terrace
