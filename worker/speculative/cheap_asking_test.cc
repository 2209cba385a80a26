#include "worker/speculative/cheap_asking.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr double kShare = 0.005;
constexpr uint32_t kFree = 32;  // steps

// How often it asks in so many steps of 1 s, of which asking takes and saves some.
uint32_t Asked(CheapAsking& asking, uint32_t steps, double cost, double saved) {
  uint32_t asked = 0;
  for (uint32_t step = 0; step < steps; ++step) {
    asking.LearnStep(1);
    if (!asking.WantsDrafts()) continue;
    ++asked;
    asking.LearnAsking(cost, saved);
  }
  return asked;
}

TEST(CheapAsking, AsksForAllThatEachMayHave) {
  CheapAsking asking(kShare);
  const StepCosts unknown;
  const Acceptance acceptance;
  const DraftCandidate candidates[] = {{.most = 3, .acceptance = &acceptance},
                                       {.most = 0, .acceptance = &acceptance},
                                       {.most = 100, .acceptance = &acceptance}};
  const DraftableStep step{.load = {.decodes = 3}, .room = 1, .max_tokens = 8, .costs = &unknown};
  EXPECT_EQ(asking.Ask(step, candidates), (std::vector<uint32_t>{3, 0, 8}));
}

TEST(CheapAsking, WhatDoesNotPayTakesItsShareOfTheTimeAndNoMore) {
  for (const double cost : {0.01, 0.1, 0.5}) {
    CheapAsking asking(kShare);
    EXPECT_EQ(Asked(asking, kFree, cost, 0), kFree);
    const double asked = Asked(asking, 5000, cost, 0);
    EXPECT_LE(asked * cost, kShare * (5000 + kFree) + 1e-6) << cost;
    EXPECT_GE(asked * cost, kShare * 5000 - 2 * cost) << cost;
  }
}

TEST(CheapAsking, WhatPaysIsAskedInEveryStepAndPaysAgainSoon) {
  CheapAsking asking(kShare);
  EXPECT_EQ(Asked(asking, 1000, 0.02, 0.02), 1000u);
  EXPECT_LT(Asked(asking, 10000, 0.02, 0), 3000u) << "no more";
  EXPECT_GE(Asked(asking, 100, 0.02, 1), 90u) << "and again";
}

// Neither of the first calls nor of a later one.
TEST(CheapAsking, OneStallIsNotWhatAskingTakes) {
  for (const uint32_t stall : {1u, 100u}) {
    CheapAsking asking(kShare);
    uint32_t asked = 0;
    for (int step = 0; step < 5000; ++step) {
      asking.LearnStep(0.005);
      if (!asking.WantsDrafts()) continue;
      ++asked;
      asking.LearnAsking(asked == stall ? 5 : 0.00005, asked < 40 ? 0 : 0.002);
    }
    EXPECT_GT(asked, 4000u) << "call " << stall;
  }
}

}  // namespace
}  // namespace terrace
