#include "router/dispatch/failover.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

const Status kLost = Unavailable("gone");
MonoTime At(Duration time) { return MonoTime(time); }

TEST(Failover, SoManyAttemptsInARowMayBringNoToken) {
  const struct {
    const char* name;
    std::string attempts;  // t: with a token, then lost; -: lost; o: did not begin
    bool may_retry;
  } cases[] = {
      {"the first", "-", true},
      {"one fewer than the limit", "--", true},
      {"the limit", "---", false},
      {"a token between", "--t", true},
      {"two after a token", "t--", true},
      {"three after a token", "t---", false},
      {"any number with tokens", "tttttttt", true},
      {"any number that did not begin", "toooooooo", true},
      {"those do not begin the count anew", "t-o-o-", false},
  };
  for (const auto& c : cases) {
    Failover failover({.max_attempts = 3});
    ReplicaId replica = 0;
    for (const char attempt : c.attempts) {
      failover.OnAttempt();
      if (attempt == 't') failover.OnToken();
      failover.OnFailure(replica++, kLost, /*counts=*/attempt != 'o', At(seconds(0)));
    }
    EXPECT_EQ(failover.may_retry(), c.may_retry) << c.name;
    EXPECT_EQ(failover.attempts(), c.attempts.size());
  }
}

TEST(Failover, WhatEveryReplicaWouldRepeatIsNotRetried) {
  Failover failover(RetryOptions{});
  failover.OnAttempt();
  failover.OnFailure(0, WithReason(Internal("NaN"), "numeric_error"), true, At(seconds(0)));
  EXPECT_FALSE(failover.may_retry());
  EXPECT_EQ(Reason(failover.error()), "numeric_error");
}

TEST(Failover, AReplicaThatFailedRestsUntilATokenComesFromAnother) {
  Failover failover(RetryOptions{});
  failover.OnFailure(7, kLost, true, At(seconds(10)));
  failover.OnFailure(3, kLost, true, At(seconds(10) + Failover::kRest / 2));
  constexpr bool kHasBegun = true;
  EXPECT_THAT(failover.TriedAt(At(seconds(10) + Failover::kRest - Duration(1)), kHasBegun),
              ElementsAre(3, 7));
  EXPECT_THAT(failover.TriedAt(At(seconds(10) + Failover::kRest), kHasBegun), ElementsAre(3));
  failover.OnToken();
  EXPECT_THAT(failover.TriedAt(At(seconds(10)), kHasBegun), IsEmpty());
}

TEST(Failover, BeforeTheFirstTokenAReplicaThatFailedIsNotTriedAgain) {
  Failover failover(RetryOptions{});
  failover.OnFailure(7, kLost, true, At(seconds(10)));
  EXPECT_THAT(failover.TriedAt(At(seconds(3600)), /*has_begun=*/false), ElementsAre(7));
}

TEST(Failover, AttemptsThatNobodyBeginsWithHaveAsLongAsAWait) {
  Failover failover({.resume_patience = seconds(10)});
  failover.OnFailure(0, kLost, /*counts=*/false, At(seconds(100)));
  failover.OnFailure(1, kLost, /*counts=*/false, At(seconds(110) - Duration(1)));
  EXPECT_TRUE(failover.may_retry());
  failover.OnFailure(0, kLost, /*counts=*/false, At(seconds(110)));
  EXPECT_FALSE(failover.may_retry());
  failover.OnToken();
  EXPECT_TRUE(failover.may_retry());
}

TEST(Failover, AttemptsAreBoundedHoweverMuchEachBrings) {
  Failover failover({.max_attempts = 3});
  for (uint32_t i = 0; i < Failover::kMostAttempts; ++i) {
    EXPECT_EQ(failover.attempts(), i);
    failover.OnAttempt();
    failover.OnToken();
    failover.OnFailure(0, kLost, /*counts=*/true, At(seconds(i)));
    EXPECT_EQ(failover.may_retry(), i + 1 < Failover::kMostAttempts);
  }
}

TEST(Failover, PatienceBeginsWithTheWaitAndAnewWithTheNextOne) {
  Failover failover({.resume_patience = seconds(10)});
  EXPECT_TRUE(failover.MayWait(At(seconds(100))));
  EXPECT_TRUE(failover.MayWait(At(seconds(110) - Duration(1))));
  EXPECT_FALSE(failover.MayWait(At(seconds(110))));
  failover.OnFailure(0, kLost, /*counts=*/false, At(seconds(110)));
  EXPECT_FALSE(failover.MayWait(At(seconds(110)))) << "it is still the same wait";
  failover.OnToken();
  EXPECT_TRUE(failover.MayWait(At(seconds(200))));
  failover.OnFailure(0, kLost, /*counts=*/true, At(seconds(215)));
  EXPECT_TRUE(failover.MayWait(At(seconds(215))));
  EXPECT_FALSE(Failover({.resume_patience = seconds(0)}).MayWait(At(seconds(0))));
}

}  // namespace
}  // namespace terrace
