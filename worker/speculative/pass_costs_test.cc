#include "worker/speculative/pass_costs.h"

#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

void Learn(PassCosts& costs, const std::vector<uint32_t>& passes, double seconds) {
  costs.Learn(passes, seconds);
}

TEST(PassCosts, BeforeAnythingIsKnownAPassCostsSomeTokensMoreThanItHas) {
  PassCosts costs(256);
  EXPECT_FALSE(costs.is_known());
  Learn(costs, {}, 1);
  EXPECT_FALSE(costs.is_known()) << "no pass was run";
  Learn(costs, {32, 1}, 97);
  EXPECT_TRUE(costs.is_known());
  EXPECT_NEAR(costs.Seconds(32), 32 + 32, 0.1);
  EXPECT_NEAR(costs.Seconds(1), 32 + 1, 0.1);
}

TEST(PassCosts, AKnownPassHasAShareOfItsCallAsItWasExpected) {
  PassCosts costs(256);
  Learn(costs, {1}, 1);
  Learn(costs, {64}, 3);
  for (int call = 0; call < 100; ++call) Learn(costs, {64, 1, 1}, 2 * (3 + 1 + 1));  // the machine is slower
  EXPECT_NEAR(costs.Seconds(64) + 2 * costs.Seconds(1), 10, 0.2);
  EXPECT_NEAR(costs.Seconds(64) / costs.Seconds(1), 3, 0.5);
}

TEST(PassCosts, WhatDoesNotFitAPassIsReadInSeveral) {
  PassCosts costs(100);
  Learn(costs, {1}, 0.5);
  Learn(costs, {100}, 2);
  EXPECT_NEAR(costs.ReadSeconds(1), 0.5, 0.01);
  EXPECT_NEAR(costs.ReadSeconds(100), 2, 0.01);
  EXPECT_NEAR(costs.ReadSeconds(250), 5, 0.02);
}

}  // namespace
}  // namespace terrace
