#include "router/balance/recent_prefixes.h"

#include <numeric>
#include <vector>

#include "base/fake_clock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using std::chrono::milliseconds;

class RecentPrefixesTest : public ::testing::Test {
 protected:
  // `count` keys of one prompt: equal up to `common`, then of this prompt alone.
  static std::vector<uint64_t> Keys(size_t count, size_t common, uint64_t prompt) {
    std::vector<uint64_t> keys(count);
    for (size_t i = 0; i < count; ++i) keys[i] = i < common ? i : prompt * 1'000'000 + i;
    return keys;
  }
  // 0 blocks for nothing.
  RecentPrefixes::Found Find(const std::vector<uint64_t>& keys) {
    return recent_.Find(keys, clock_.Now()).value_or(RecentPrefixes::Found{});
  }

  FakeClock clock_;
  RecentPrefixes recent_;
};

// As much of the common beginning is found as the largest power of two in it.
TEST_F(RecentPrefixesTest, TheLongestCommonBeginningIsFound) {
  for (size_t common = 0; common <= 70; ++common) {
    RecentPrefixes recent;
    recent.Add(Keys(100, common, 1), 7, clock_.Now());
    const auto found = recent.Find(Keys(90, common, 2), clock_.Now());
    ASSERT_EQ(found.has_value(), common > 0);
    if (!found.has_value()) continue;
    EXPECT_EQ(found->replica, 7u);
    EXPECT_LE(found->blocks, common);
    EXPECT_GT(2 * found->blocks, common);
  }
}

TEST_F(RecentPrefixesTest, TheLastPlaceCounts) {
  recent_.Add(Keys(8, 8, 0), 1, clock_.Now());
  recent_.Add(Keys(4, 4, 0), 2, clock_.Now());
  EXPECT_EQ(Find(Keys(4, 4, 0)).replica, 2u);
  EXPECT_EQ(Find(Keys(8, 8, 0)).replica, 1u) << "where more of it went";
}

TEST_F(RecentPrefixesTest, APromptWithoutAWholeBlockIsNothing) {
  recent_.Add({}, 1, clock_.Now());
  EXPECT_EQ(Find({}).blocks, 0u);
}

TEST_F(RecentPrefixesTest, WhatIsOldIsForgotten) {
  const auto keys = Keys(16, 0, 1);
  recent_.Add(keys, 1, clock_.Now());
  clock_.Advance(milliseconds(1900));
  EXPECT_EQ(Find(keys).blocks, 16u);
  clock_.Advance(milliseconds(4000));
  EXPECT_EQ(Find(keys).blocks, 0u);
  recent_.Add(keys, 1, clock_.Now());
  for (int i = 0; i < 3; ++i) {  // others arrive all the time
    clock_.Advance(milliseconds(2100));
    recent_.Add(Keys(4, 0, 100 + static_cast<uint64_t>(i)), 2, clock_.Now());
  }
  EXPECT_EQ(Find(keys).blocks, 0u);
}

TEST_F(RecentPrefixesTest, AFloodForgetsTheOldestFirst) {
  const auto oldest = Keys(16, 0, 1);
  recent_.Add(oldest, 1, clock_.Now());
  uint64_t prompt = 1;
  for (size_t keys = 0; keys < 3 * RecentPrefixes::kMaxKeys; keys += 5) {
    recent_.Add(Keys(16, 0, ++prompt), 2, clock_.Now());
  }
  EXPECT_EQ(Find(oldest).blocks, 0u);
  EXPECT_EQ(Find(Keys(16, 0, prompt)).blocks, 16u);
}

}  // namespace
}  // namespace terrace
