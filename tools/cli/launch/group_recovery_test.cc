#include "tools/cli/launch/group_recovery.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

using Action = GroupRecovery::Action;

constexpr size_t kMembers = 4;
constexpr GroupRecovery::Options kOptions{
    .end_seconds = 10, .ready_seconds = 120, .most_restarts = 5, .window_seconds = 600};

MonoTime At(double seconds) {
  return MonoTime() + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

// Broken at once, and started again.
void Break(GroupRecovery& recovery, double seconds) {
  ASSERT_EQ(recovery.Next(0, kMembers, At(seconds)), Action::kStart) << seconds;
  recovery.OnStarted(At(seconds));
}

TEST(GroupRecovery, AWholeGroupIsLeftAlone) {
  GroupRecovery recovery(kOptions);
  for (const double now : {0.0, 1000.0, 1e6})
    EXPECT_EQ(recovery.Next(kMembers, kMembers, At(now)), Action::kNone);
  EXPECT_FALSE(recovery.is_broken());
}

TEST(GroupRecovery, ABrokenGroupIsStartedOnceAllOfItHasEnded) {
  GroupRecovery recovery(kOptions);
  EXPECT_EQ(recovery.Next(3, kMembers, At(100)), Action::kNone);
  EXPECT_TRUE(recovery.is_broken());
  EXPECT_EQ(recovery.Next(1, kMembers, At(109)), Action::kNone);
  EXPECT_EQ(recovery.Next(1, kMembers, At(110)), Action::kKill);
  EXPECT_EQ(recovery.Next(0, kMembers, At(111)), Action::kStart);
  recovery.OnStarted(At(111));
  EXPECT_FALSE(recovery.is_broken());
}

TEST(GroupRecovery, AGroupStartedAgainThatIsNotReadyInTimeIsKilled) {
  GroupRecovery recovery(kOptions);
  Break(recovery, 50);
  EXPECT_TRUE(recovery.is_forming());
  EXPECT_EQ(recovery.Next(kMembers, kMembers, At(170)), Action::kNone);
  EXPECT_EQ(recovery.Next(kMembers, kMembers, At(171)), Action::kKillUnready);
  Break(recovery, 171);  // it has a new bound
  EXPECT_EQ(recovery.Next(kMembers, kMembers, At(290)), Action::kNone);
  EXPECT_EQ(recovery.Next(kMembers, kMembers, At(292)), Action::kKillUnready);
}

TEST(GroupRecovery, AGroupThatIsReadyIsNotTimedAnyMore) {
  GroupRecovery recovery(kOptions);
  Break(recovery, 50);
  recovery.OnReady();
  EXPECT_FALSE(recovery.is_forming());
  EXPECT_EQ(recovery.Next(kMembers, kMembers, At(1000)), Action::kNone);
}

TEST(GroupRecovery, AGroupThatBreaksWhileItFormsHasItsTimeToEnd) {
  GroupRecovery recovery(kOptions);
  Break(recovery, 0);
  EXPECT_EQ(recovery.Next(2, kMembers, At(125)), Action::kNone);
  EXPECT_FALSE(recovery.is_forming());
  EXPECT_EQ(recovery.Next(2, kMembers, At(135)), Action::kKill);
}

TEST(GroupRecovery, WhatBreaksTooOftenWaitsOnceSaidAndIsStartedWhenTheWindowHasPassed) {
  GroupRecovery recovery(kOptions);
  for (const double now : {0.0, 20.0, 40.0, 60.0, 80.0}) Break(recovery, now);
  EXPECT_EQ(recovery.Next(0, kMembers, At(100)), Action::kWait);
  EXPECT_DOUBLE_EQ(recovery.wait_seconds(At(100)), 500);
  EXPECT_EQ(recovery.Next(0, kMembers, At(101)), Action::kNone);
  EXPECT_EQ(recovery.Next(0, kMembers, At(599)), Action::kNone);
  Break(recovery, 600);
  EXPECT_EQ(recovery.Next(0, kMembers, At(601)), Action::kWait) << "a new wait is said again";
  EXPECT_DOUBLE_EQ(recovery.wait_seconds(At(601)), 19);
  Break(recovery, 620);
}

TEST(GroupRecovery, WhatBreaksRarelyIsStartedForEver) {
  GroupRecovery recovery(kOptions);
  for (int i = 0; i < 100; ++i) Break(recovery, 150.0 * i);
}

TEST(GroupRecovery, AStartThatFailsIsTriedAgainAfterAWindow) {
  GroupRecovery recovery(kOptions);
  EXPECT_EQ(recovery.Next(0, kMembers, At(5)), Action::kStart);
  recovery.OnStartFailed(At(5));
  EXPECT_TRUE(recovery.is_broken());
  EXPECT_EQ(recovery.Next(0, kMembers, At(6)), Action::kNone) << "it was said with the failure";
  EXPECT_DOUBLE_EQ(recovery.wait_seconds(At(6)), 599);
  Break(recovery, 605);
}

}  // namespace
}  // namespace terrace
