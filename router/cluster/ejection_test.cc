#include "router/cluster/ejection.h"

#include <cmath>
#include <numeric>

#include "base/fake_clock.h"
#include "base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Optional;

class EjectionsTest : public ::testing::Test {
 protected:
  static constexpr ReplicaId kA = 1, kB = 2, kC = 3;

  std::optional<Duration> Fail(ReplicaId replica, int times = 1) {
    std::optional<Duration> ejected;
    for (int i = 0; i < times; ++i) ejected = ejections_.OnFailure(replica, clock_.Now(), tier_, 0);
    return ejected;
  }
  // Lets the time of an ejection pass and the trial fail.
  std::optional<Duration> FailOnTrial(ReplicaId replica, Duration ejection) {
    clock_.Advance(ejection);
    EXPECT_THAT(ejections_.EndDue(clock_.Now()), ElementsAre(replica));
    return Fail(replica);
  }

  FakeClock clock_;
  Ejections::Counts tier_ = {.replicas = 4, .in_use = 4};
  Ejections ejections_{EjectionOptions{
      .consecutive_failures = 3, .first_time = seconds(10), .longest = seconds(50), .max_share = 0.5}};
};

TEST(Fault, IsWhatAnotherReplicaWouldNotHaveDone) {
  const struct {
    Status status;
    const char* fault;
  } cases[] = {
      {{}, ""},
      {Unavailable("Socket closed"), "unavailable"},
      {Cancelled("going down"), "unavailable"},
      {absl::UnknownError("?"), "unknown"},
      {Internal("?"), "internal"},
      {DataLoss("?"), "internal"},
      {WithReason(Internal("tokens twice"), "worker_protocol"), "protocol"},
      {WithReason(Internal("NaN"), "numeric_error"), ""},
      {WithReason(InvalidArgument("no"), "context_length_exceeded"), ""},
      {WithReason(ResourceExhausted("inbox full"), "overloaded"), ""},
      {WithReason(Unavailable("bye"), "draining"), ""},
      {WithReason(Unavailable("another"), "wrong_instance"), ""},
      {DeadlineExceeded("late"), ""},
      {CountedAlready(Unavailable("Socket closed")), ""},
  };
  for (const auto& c : cases) EXPECT_EQ(FaultOf(c.status), c.fault) << c.status;
}

TEST_F(EjectionsTest, OnlyFailuresInARowEject) {
  EXPECT_EQ(Fail(kA, 2), std::nullopt);
  ejections_.OnSuccess(kA);
  EXPECT_EQ(Fail(kA, 2), std::nullopt);
  EXPECT_EQ(Fail(kB, 2), std::nullopt) << "each has its own";
  EXPECT_FALSE(ejections_.IsEjected(kA));
  EXPECT_THAT(Fail(kA), Optional(seconds(10)));
  EXPECT_TRUE(ejections_.IsEjected(kA));
  EXPECT_FALSE(ejections_.IsEjected(kB));
}

TEST_F(EjectionsTest, SoManyOfTheLastCallsEjectWhateverComesBetween) {
  const struct {
    const char* name;
    std::vector<uint64_t> successes;  // before each failure
    EjectionOptions options;
    bool is_ejected;  // by the last one, and not before
  } cases[] = {
      {"every second call", {1, 1, 1, 1, 1}, {}, true},
      {"one fewer", {1, 1, 1, 1}, {}, false},
      {"the fifth in the last twenty", {9, 14, 0, 1, 0}, {.consecutive_failures = 9}, true},
      {"the first is the 21st from the end", {9, 15, 0, 1, 0}, {.consecutive_failures = 9}, false},
      {"long ago", {0, 0, 1u << 20, 0, 62, 0, 63, 0, 64, 0}, {}, false},
      {"those in a row alone", {1, 1, 1, 1, 1, 1, 1, 1}, {.window_failures = 0}, false},
      {"two of three", {0, 1}, {.window_failures = 2, .window_calls = 3}, true},
      {"two of two", {0, 1, 1}, {.window_failures = 2, .window_calls = 2}, false},
      {"two of sixty-four", {0, 62}, {.window_failures = 2, .window_calls = 64}, true},
      {"the first is too old", {0, 63}, {.window_failures = 2, .window_calls = 64}, false},
  };
  for (const auto& c : cases) {
    Ejections ejections(c.options);
    for (size_t i = 0; i < c.successes.size(); ++i) {
      if (c.successes[i] > 0) ejections.OnSuccess(kA);
      EXPECT_EQ(ejections.OnFailure(kA, clock_.Now(), tier_, c.successes[i]).has_value(),
                c.is_ejected && i + 1 == c.successes.size())
          << c.name << ", failure " << i;
    }
  }
}

TEST_F(EjectionsTest, AnEjectionAndALostConnectionClearTheWindow) {
  const auto fail_now_and_then = [&](int times) {
    std::optional<Duration> ejected;
    for (int i = 0; i < times; ++i) {
      ejections_.OnSuccess(kA);
      ejected = ejections_.OnFailure(kA, clock_.Now(), tier_, 1);
    }
    return ejected;
  };
  EXPECT_THAT(fail_now_and_then(5), Optional(seconds(10)));
  clock_.Advance(seconds(10));
  ejections_.EndDue(clock_.Now());
  EXPECT_EQ(fail_now_and_then(4), std::nullopt);
  ejections_.OnConnectionLost(kA, clock_.Now());
  EXPECT_EQ(fail_now_and_then(4), std::nullopt);
  EXPECT_THAT(fail_now_and_then(1), Optional(seconds(20)));
}

TEST_F(EjectionsTest, NobodyIsEjectedWhereNoFailureIsTooMany) {
  Ejections never(EjectionOptions{.consecutive_failures = 0});
  for (int i = 0; i < 100; ++i) EXPECT_EQ(never.OnFailure(kA, clock_.Now(), tier_, 0), std::nullopt);
}

TEST_F(EjectionsTest, ItsTimeDoublesUpToTheLimit) {
  EXPECT_THAT(Fail(kA, 3), Optional(seconds(10)));
  EXPECT_THAT(FailOnTrial(kA, seconds(10)), Optional(seconds(20)));
  EXPECT_THAT(FailOnTrial(kA, seconds(20)), Optional(seconds(40)));
  EXPECT_THAT(FailOnTrial(kA, seconds(40)), Optional(seconds(50)));
  EXPECT_THAT(FailOnTrial(kA, seconds(50)), Optional(seconds(50)));
}

TEST_F(EjectionsTest, ItEndsWhenItsTimeIsOverAndNotBefore) {
  Fail(kA, 3);
  clock_.Advance(seconds(10) - Duration(1));
  EXPECT_THAT(ejections_.EndDue(clock_.Now()), IsEmpty());
  clock_.Advance(Duration(1));
  EXPECT_THAT(ejections_.EndDue(clock_.Now()), ElementsAre(kA));
  EXPECT_FALSE(ejections_.IsEjected(kA));
  EXPECT_THAT(ejections_.EndDue(clock_.Now()), IsEmpty()) << "once";
}

TEST_F(EjectionsTest, WhatEndsWhileItIsEjectedDoesNotCount) {
  Fail(kA, 3);
  EXPECT_EQ(Fail(kA, 5), std::nullopt) << "calls from before";
  ejections_.OnSuccess(kA);
  EXPECT_TRUE(ejections_.IsEjected(kA));
  EXPECT_THAT(FailOnTrial(kA, seconds(10)), Optional(seconds(20))) << "the trial is still to come";
}

TEST_F(EjectionsTest, ASuccessEndsTheTrial) {
  Fail(kA, 3);
  clock_.Advance(seconds(10));
  ejections_.EndDue(clock_.Now());
  ejections_.OnSuccess(kA);
  EXPECT_EQ(Fail(kA, 2), std::nullopt);
  EXPECT_THAT(Fail(kA), Optional(seconds(20))) << "its past is not forgotten at once";
}

TEST_F(EjectionsTest, ADoublingIsForgottenForEachTimeAsLongThatItStaysIn) {
  Fail(kA, 3);
  FailOnTrial(kA, seconds(10));  // for 20 s
  clock_.Advance(seconds(20));
  ejections_.EndDue(clock_.Now());
  ejections_.OnSuccess(kA);
  clock_.Advance(seconds(19));
  EXPECT_THAT(Fail(kA, 3), Optional(seconds(40)));
  clock_.Advance(seconds(40));
  ejections_.EndDue(clock_.Now());
  ejections_.OnSuccess(kA);
  clock_.Advance(seconds(40 + 20));
  EXPECT_THAT(Fail(kA, 3), Optional(seconds(20)));
  clock_.Advance(seconds(20));
  ejections_.EndDue(clock_.Now());
  ejections_.OnSuccess(kA);
  clock_.Advance(std::chrono::hours(1));
  EXPECT_THAT(Fail(kA, 3), Optional(seconds(10)));
}

TEST_F(EjectionsTest, NoMoreThanAShareOfTheTierIsEjectedButOneMayBe) {
  const struct {
    size_t replicas;
    double max_share;
    size_t ejected;
  } cases[] = {{4, 0.5, 2}, {5, 0.5, 2}, {3, 0.5, 1},   {2, 0.5, 1},
               {2, 1, 1},   {1, 1, 0},   {10, 0.01, 1}, {9, 1, 8}};
  for (const auto& c : cases) {
    Ejections ejections(EjectionOptions{.max_share = c.max_share});
    size_t ejected = 0;
    for (ReplicaId id = 0; id < c.replicas; ++id) {
      for (int i = 0; i < 9; ++i) {
        const Ejections::Counts tier = {.replicas = c.replicas, .in_use = c.replicas - ejected};
        if (ejections.OnFailure(id, clock_.Now(), tier, 0).has_value()) ++ejected;
      }
    }
    EXPECT_EQ(ejected, c.ejected) << c.replicas << " replicas, " << c.max_share;
  }
}

TEST_F(EjectionsTest, WhoFailsBeyondTheShareIsEjectedWhenThereIsRoomAgain) {
  Fail(kA, 3);
  Fail(kB, 3);
  EXPECT_EQ(Fail(kC, 9), std::nullopt);
  ejections_.Forget(kA);
  EXPECT_THAT(Fail(kC), Optional(seconds(10)));
}

TEST_F(EjectionsTest, AllAreLetInOnTrialWhenNobodyElseIsLeft) {
  Fail(kA, 3);
  Fail(kB, 3);
  EXPECT_THAT(ejections_.EndAll(clock_.Now()), ElementsAre(kA, kB));
  EXPECT_THAT(Fail(kA), Optional(seconds(20)));
}

TEST_F(EjectionsTest, ALostConnectionIsNoFailureAndEndsInATrial) {
  Fail(kA, 2);
  ejections_.OnConnectionLost(kA, clock_.Now());
  EXPECT_EQ(Fail(kA, 2), std::nullopt);
  Fail(kA);
  ejections_.OnConnectionLost(kA, clock_.Now());
  EXPECT_FALSE(ejections_.IsEjected(kA));
  EXPECT_THAT(Fail(kA), Optional(seconds(20)));
}

TEST_F(EjectionsTest, ANewProcessBeginsWithoutAPast) {
  Fail(kA, 3);
  ejections_.Forget(kA);
  EXPECT_FALSE(ejections_.IsEjected(kA));
  EXPECT_EQ(Fail(kA, 2), std::nullopt);
  EXPECT_THAT(Fail(kA), Optional(seconds(10)));
}

// Whatever happens, the bounds hold and every ejection ends.
TEST_F(EjectionsTest, TheBoundsHoldForAnySequenceOfEvents) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    uint64_t draws = 0;
    const auto draw = [&](uint64_t below) { return RandomBits(seed, draws++) % below; };
    const size_t replicas = 1 + draw(8);
    const double max_share = static_cast<double>(1 + draw(10)) / 10;
    Ejections ejections(EjectionOptions{.consecutive_failures = 2, .max_share = max_share});
    const auto ejected = [&] {
      size_t count = 0;
      for (ReplicaId id = 0; id < replicas; ++id) count += ejections.IsEjected(id) ? 1 : 0;
      return count;
    };
    const auto most = std::max<size_t>(1, static_cast<size_t>(max_share * static_cast<double>(replicas)));
    for (int event = 0; event < 500; ++event) {
      const auto id = static_cast<ReplicaId>(draw(replicas));
      clock_.Advance(std::chrono::milliseconds(draw(3000)));
      switch (draw(4)) {
        case 0:
          ejections.OnSuccess(id);
          break;
        case 1:
          ejections.EndDue(clock_.Now());
          break;
        default:
          ejections.OnFailure(id, clock_.Now(), {replicas, replicas - ejected()}, draw(9));
      }
      ASSERT_LE(ejected(), most);
      ASSERT_LT(ejected(), replicas);
    }
    clock_.Advance(seconds(120));
    ejections.EndDue(clock_.Now());
    EXPECT_EQ(ejected(), 0u);
  }
}

}  // namespace
}  // namespace terrace
