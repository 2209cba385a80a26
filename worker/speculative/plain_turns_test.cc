#include "worker/speculative/plain_turns.h"

#include <random>

#include "base/status.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr double kShare = 0.01;
constexpr uint32_t kWindow = PlainTurns::kWindow;

// Turns of `decodes` sequences; with the drafter they take `drafted` seconds each and save the share `gain`
// of the time in the mean, with so much noise; without it they take 1 s. The number of those without it.
uint32_t RunTurns(PlainTurns& turns, uint32_t decodes, uint32_t count, double drafted, double gain,
                  double noise = 0) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> share(gain - noise, gain + noise);
  uint32_t plain = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const bool is_asked = !turns.is_window();
    turns.Count(is_asked);
    turns.Learn(decodes, is_asked ? drafted : 1, 1);
    if (is_asked) turns.LearnGain(decodes, 1, share(random));
    plain += is_asked ? 0 : 1;
  }
  return plain;
}

TEST(PlainTurns, NothingIsKnownBeforeTheFirstWindowWhichComesSoonEnough) {
  PlainTurns turns(kShare);
  const StepCosts costs;
  EXPECT_EQ(RunTurns(turns, 4, PlainTurns::kFirst, 1.5, 0.2), 0u);
  EXPECT_EQ(turns.Seconds(4, costs), 0);
  RunTurns(turns, 4, 2000, 1.5, 0.2);
  EXPECT_DOUBLE_EQ(turns.Seconds(4, costs), 1);
  EXPECT_EQ(turns.Seconds(64, costs), 0) << "of so many nothing was measured";
}

TEST(PlainTurns, AWindowIsSoManyTurnsInARowOfWhichTheFirstDoNotCount) {
  PlainTurns turns(kShare);
  RunTurns(turns, 1, PlainTurns::kFirst, 1.5, 0);
  ASSERT_TRUE(turns.is_window());
  for (uint32_t i = 0; i < kWindow; ++i) {
    EXPECT_TRUE(turns.is_window()) << i;
    turns.Count(/*was_asked=*/false);
    EXPECT_EQ(turns.is_plain(), i >= PlainTurns::kSettling) << i;
    turns.Learn(1, i < PlainTurns::kSettling ? 100 : 1, 1);
  }
  EXPECT_FALSE(turns.is_window());
  EXPECT_DOUBLE_EQ(turns.Seconds(1, StepCosts()), 1);
}

TEST(PlainTurns, TheGainThatWindowsMissIsAtMostTheirShare) {
  for (const double gain : {0.05, 0.2, 0.5, 0.9}) {
    for (const double noise : {0.0, 0.5}) {
      SCOPED_TRACE(Concat("gain ", gain, ", noise ", noise));
      PlainTurns turns(kShare);
      constexpr uint32_t kTurns = 50'000;
      const uint32_t plain = RunTurns(turns, 4, kTurns, 1, gain, noise);
      EXPECT_LE(plain * gain, 1.5 * kShare * kTurns + 2 * kWindow * gain);
      EXPECT_GE(plain, kWindow * 10);
    }
  }
}

TEST(PlainTurns, WhatGainsNothingIsComparedAsOftenAsMayBe) {
  PlainTurns turns(kShare);
  constexpr uint32_t kTurns = 10'000, kApart = PlainTurns::kApart + kWindow;
  EXPECT_NEAR(RunTurns(turns, 4, kTurns, 1, -0.1), 1.0 * kTurns / kApart * kWindow, kWindow);
}

TEST(PlainTurns, WithinItsRangeOfSequencesATurnIsScaledByWhatStepsTake) {
  PlainTurns turns(kShare);
  StepCosts costs;
  for (int i = 0; i < 100; ++i) {
    costs.Learn({.decodes = 4}, 0, 2);
    costs.Learn({.decodes = 6}, 0, 3);
  }
  for (uint32_t i = 0; i < 100; ++i) {
    turns.Count(/*was_asked=*/false);
    turns.Learn(4, 2.5, costs.Seconds(4));
  }
  EXPECT_NEAR(turns.Seconds(4, costs), 2.5, 1e-6);
  EXPECT_NEAR(turns.Seconds(6, costs), 2.5 * costs.Seconds(6) / costs.Seconds(4), 1e-6);
}

TEST(PlainTurns, AStallIsNotWhatTurnsTake) {
  PlainTurns turns(kShare);
  for (int i = 0; i < 200; ++i) {
    turns.Count(/*was_asked=*/false);
    turns.Learn(1, i == 0 || i == 100 ? 1000 : 1, 1);
  }
  EXPECT_NEAR(turns.Seconds(1, StepCosts()), 1, 0.01);
}

}  // namespace
}  // namespace terrace
