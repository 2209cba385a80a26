#include "worker/speculative/step_costs.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(StepCosts, KnowsNothingAtFirstThenWhatStepsTookByTheirTokens) {
  StepCosts costs;
  EXPECT_EQ(costs.Seconds(4), 0);
  EXPECT_EQ(costs.ExtraSeconds({.decodes = 4}, 3), 0);
  costs.Learn({.decodes = 4}, 0, 0.5);
  EXPECT_EQ(costs.Seconds(4), 0.5);
  EXPECT_EQ(costs.ExtraSeconds({.decodes = 4}, 4), 0) << "larger steps are tried";
  costs.Learn({.decodes = 4}, 4, 0.75);
  EXPECT_NEAR(costs.ExtraSeconds({.decodes = 4}, 4), 0.25, 0.01);
  EXPECT_NEAR(costs.ExtraSeconds({.decodes = 6}, 2), 0.125, 0.01);
}

// What a larger step took is believed less the longer ago it was: who must not be wrong asks for all of it.
TEST(StepCosts, WhatIsNotBelievedAnyMoreWasMeasured) {
  StepCosts costs;
  costs.Learn({.decodes = 1}, 0, 1);
  costs.Learn({.decodes = 1}, 7, 3);
  for (int step = 0; step < 5000; ++step) costs.Learn({.decodes = 1}, 0, 1);
  EXPECT_LT(costs.ExtraSeconds({.decodes = 1}, 7), 0.1);
  EXPECT_NEAR(costs.MeasuredExtraSeconds({.decodes = 1}, 7), 2, 0.01);
}

TEST(StepCosts, BesidePromptsATokenCostsAtLeastWhatOneOfThemDoes) {
  StepCosts costs;
  costs.Learn({.decodes = 1}, 0, 1);
  costs.Learn({.decodes = 1, .others = 100}, 0, 51);
  EXPECT_NEAR(costs.ExtraSeconds({.decodes = 1, .others = 100}, 3), 3 * 0.5, 1e-6);
  EXPECT_NEAR(costs.MeasuredExtraSeconds({.decodes = 1, .others = 100}, 3), 3 * 0.5, 1e-6);
  EXPECT_EQ(costs.ExtraSeconds({.decodes = 1}, 3), 0);
  EXPECT_EQ(costs.Seconds(1), 1) << "the prompts' time is theirs";
}

TEST(StepCosts, AFewTokensOfPromptsInEveryStepHideNothing) {
  for (const uint32_t others : {5u, 20u, 32u}) {
    StepCosts costs;
    for (int step = 0; step < 100; ++step) costs.Learn({.decodes = 8, .others = others}, 0, 0.01);
    EXPECT_GT(costs.Seconds(8), 0) << others;
    EXPECT_LE(costs.Seconds(8), 0.01 + 1e-9) << others;
  }
  StepCosts costs;
  costs.Learn({.decodes = 8, .others = 33}, 0, 0.01);
  EXPECT_EQ(costs.Seconds(8), 0) << "mostly prompts";
}

TEST(StepCosts, APlainStepIsWantedWhereItTellsWhatIsNotKnown) {
  StepCosts costs;
  EXPECT_TRUE(costs.wants_plain_step({.decodes = 4}));
  EXPECT_FALSE(costs.wants_plain_step({.decodes = 4, .others = 100})) << "it would tell nothing";
  EXPECT_FALSE(costs.wants_plain_step({})) << "nor would one without answers";
  costs.Learn({.decodes = 4}, 0, 1);
  EXPECT_FALSE(costs.wants_plain_step({.decodes = 4}));
  for (int step = 0; step < 100; ++step) costs.Learn({.decodes = 4}, 28, 2);
  EXPECT_TRUE(costs.wants_plain_step({.decodes = 4}));
}

TEST(StepCosts, OneSlowPromptSaysLittle) {
  const StepLoad load{.decodes = 1, .others = 100};
  StepCosts costs;
  costs.Learn({.decodes = 1}, 0, 1);
  for (int step = 0; step < 20; ++step) costs.Learn(load, 0, 2);
  costs.Learn(load, 0, 1000);
  EXPECT_GT(costs.ExtraSeconds(load, 1), 0.01);
  EXPECT_LT(costs.ExtraSeconds(load, 1), 0.02);
}

}  // namespace
}  // namespace terrace
