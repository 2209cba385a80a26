#include "worker/speculative/cost_curve.h"

#include <random>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(CostCurve, KnowsNothingAtFirstThenWhatWasMeasuredAndNoRise) {
  CostCurve curve;
  EXPECT_FALSE(curve.is_known());
  EXPECT_EQ(curve.Seconds(5), 0);
  curve.Learn(4, 0.5);
  EXPECT_TRUE(curve.is_known());
  for (const double tokens : {1.0, 4.0, 5.0, 1000.0, 1e6}) EXPECT_EQ(curve.Seconds(tokens), 0.5) << tokens;
  curve.Learn(8, 0.7);
  EXPECT_NEAR(curve.Seconds(8), 0.7, 0.02);
  EXPECT_NEAR(curve.Seconds(6), 0.6, 0.02);
  EXPECT_EQ(curve.Seconds(8), curve.Seconds(9));
}

TEST(CostCurve, FindsALineThroughNoise) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> noise(0.9, 1.1);
  const auto truth = [](double tokens) { return 1 + 0.05 * tokens; };
  CostCurve curve;
  for (int step = 0; step < 3000; ++step) {
    const double tokens = 1 + random() % 100;
    curve.Learn(tokens, truth(tokens) * noise(random));
  }
  for (const double tokens : {1.0, 2.0, 7.0, 20.0, 50.0, 90.0})
    EXPECT_NEAR(curve.Seconds(tokens), truth(tokens), 0.15 * truth(tokens)) << tokens;
}

TEST(CostCurve, AFigureIsFreshForSomeSteps) {
  CostCurve curve;
  EXPECT_FALSE(curve.is_fresh(4));
  curve.Learn(4, 1);
  EXPECT_TRUE(curve.is_fresh(4));
  EXPECT_FALSE(curve.is_fresh(1)) << "it has a figure of its own";
  for (int step = 0; step < 50; ++step) curve.Learn(64, 2);
  EXPECT_TRUE(curve.is_fresh(4));
  for (int step = 0; step < 50; ++step) curve.Learn(64, 2);
  EXPECT_FALSE(curve.is_fresh(4));
  for (double tokens = 0.5; tokens < 20'000; tokens *= 1.1) {
    curve.Learn(tokens, 3);
    EXPECT_TRUE(curve.is_fresh(tokens)) << tokens;
  }
}

TEST(CostCurve, NeverFalls) {
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    std::mt19937 random(seed);
    CostCurve curve;
    for (int step = 0; step < 100; ++step) {
      curve.Learn(1 + random() % 300, 1e-3 * (1 + random() % 100));
      for (double tokens = 1; tokens < 400; tokens += 7)
        ASSERT_LE(curve.Seconds(tokens), curve.Seconds(tokens + 7) + 1e-12) << "seed " << seed;
    }
  }
}

TEST(CostCurve, FollowsWhatGetsSlowerEverywhere) {
  CostCurve curve;
  for (int step = 0; step < 20; ++step) curve.Learn(1, 1), curve.Learn(8, 2);
  for (int step = 0; step < 100; ++step) curve.Learn(1, 1.5);
  EXPECT_NEAR(curve.Seconds(1), 1.5, 0.02);
  EXPECT_GT(curve.Seconds(8), 2.1) << "larger steps are slower too";
}

TEST(CostCurve, OneSlowStepSaysLittle) {
  CostCurve curve;
  for (int step = 0; step < 20; ++step) curve.Learn(4, 1);
  curve.Learn(4, 1000);
  EXPECT_LE(curve.Seconds(4), 1.26);
  for (int step = 0; step < 20; ++step) curve.Learn(4, 1);
  EXPECT_NEAR(curve.Seconds(4), 1, 0.01);
}

TEST(CostCurve, WhatWasNotMeasuredForLongIsBelievedLess) {
  CostCurve curve;
  curve.Learn(1, 1);
  curve.Learn(8, 9);
  EXPECT_NEAR(curve.Seconds(8), 9, 0.5);
  for (int step = 0; step < 512; ++step) curve.Learn(1, 1);
  EXPECT_NEAR(curve.Seconds(8), 5, 0.5);
  for (int step = 0; step < 5000; ++step) curve.Learn(1, 1);
  EXPECT_NEAR(curve.Seconds(8), 1, 0.1);
}

// What was forgotten and is measured again is what the new measurement says, however often that happens.
TEST(CostCurve, WhatIsMeasuredAgainIsBelievedAgain) {
  for (const double truth : {1.05, 9.0}) {
    CostCurve curve;
    for (int step = 0; step < 20; ++step) curve.Learn(1, 1), curve.Learn(8, 9);
    for (int round = 0; round < 8; ++round) {
      while (curve.Seconds(8) > 1.5) curve.Learn(1, 1);
      for (int step = 0; step < 100; ++step) curve.Learn(1, 1);
      curve.Learn(8, truth);
      EXPECT_NEAR(curve.Seconds(8), truth, 0.1 * truth) << "round " << round;
    }
  }
}

}  // namespace
}  // namespace terrace
