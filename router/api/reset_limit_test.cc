#include "router/api/reset_limit.h"

#include <vector>

#include "base/fake_clock.h"
#include "base/retry_after.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

class ResetLimitTest : public ::testing::Test {
 protected:
  void Reset(const std::string& peer, int times) {
    for (int i = 0; i < times; ++i) limit_.OnReset(peer, clock_.Now());
  }

  FakeClock clock_;
  int resets_ = 0;
  std::vector<std::string> limited_;
  ResetLimit limit_{{.max_resets = 3,
                     .on_reset = [this] { ++resets_; },
                     .on_limited = [this](std::string_view peer) { limited_.emplace_back(peer); }},
                    clock_};
};

TEST_F(ResetLimitTest, AConnectionIsRefusedFromOneMoreThanItsLimitOnUntilTheWindowIsOver) {
  EXPECT_TRUE(limit_.is_empty());
  Reset("a:1", 3);
  EXPECT_FALSE(limit_.is_empty());
  EXPECT_TRUE(limit_.Check("a:1").ok());
  clock_.Advance(std::chrono::seconds(4));
  Reset("a:1", 2);
  EXPECT_EQ(resets_, 5);
  EXPECT_THAT(limited_, testing::ElementsAre("a:1")) << "told once";
  const Status refused = limit_.Check("a:1");
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(refused), "too_many_resets");
  EXPECT_EQ(RetryAfter(refused), 6);
  EXPECT_TRUE(limit_.Check("a:2").ok()) << "another connection of the same machine";
  clock_.Advance(std::chrono::seconds(6));
  EXPECT_TRUE(limit_.Check("a:1").ok());
  Reset("a:1", 3);
  EXPECT_TRUE(limit_.Check("a:1").ok()) << "a window of its own";
  Reset("a:1", 1);
  EXPECT_FALSE(limit_.Check("a:1").ok());
}

TEST_F(ResetLimitTest, WithoutALimitResetsAreCountedOnly) {
  int resets = 0;
  ResetLimit limit({.max_resets = 0, .on_reset = [&] { ++resets; }}, clock_);
  for (int i = 0; i < 1000; ++i) limit.OnReset("a:1", clock_.Now());
  EXPECT_EQ(resets, 1000);
  EXPECT_TRUE(limit.is_empty());
  EXPECT_TRUE(limit.Check("a:1").ok());
}

TEST_F(ResetLimitTest, CallsThatWereOpenForLongAreCountedAndNotLimited) {
  const MonoTime begin = clock_.Now();
  clock_.Advance(ResetLimit::kQuick);
  for (int i = 0; i < 9; ++i) limit_.OnReset("a:1", begin);
  EXPECT_EQ(resets_, 9);
  EXPECT_TRUE(limit_.Check("a:1").ok()) << "they gave up";
  Reset("a:1", 4);
  EXPECT_FALSE(limit_.Check("a:1").ok());
}

TEST_F(ResetLimitTest, ItRemembersABoundedNumberOfConnectionsAndForgetsThoseWhoseWindowIsOver) {
  for (size_t i = 0; i < ResetLimit::kMaxPeers; ++i) Reset(Concat("a:", i), 1);
  Reset("late", 9);
  EXPECT_TRUE(limit_.Check("late").ok()) << "there was no room";
  Reset("a:0", 3);
  EXPECT_FALSE(limit_.Check("a:0").ok()) << "known ones are counted on";
  clock_.Advance(ResetLimit::kWindow);
  Reset("late", 4);
  EXPECT_FALSE(limit_.Check("late").ok());
}

}  // namespace
}  // namespace terrace
