#include "worker/speculative/asking_balance.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr double kShare = 0.01;
constexpr double kCredit = AskingBalance::kCreditSteps, kSettle = AskingBalance::kSettleSteps;

// Seconds that it lost in so many steps of `decodes` sequences, which take 1 s each.
double Lost(AskingBalance& balance, uint32_t decodes, uint32_t steps, double asking, double saved) {
  double lost = 0;
  for (uint32_t step = 0; step < steps; ++step) {
    const bool asks = balance.may_ask(decodes);
    balance.Earn(decodes, 1, 1);
    if (!asks) continue;
    balance.Settle(decodes, saved - asking);
    lost += asking - saved;
  }
  return lost;
}

// Beside the share: the credit, the debt, and what was not settled when it ended.
TEST(AskingBalance, WhatDoesNotPayCostsItsShareOfTheTimeInTheLongRun) {
  constexpr uint32_t kSteps = 50'000;
  for (const double asking : {0.02, 0.1, 0.5, 2.0, 8.0}) {
    AskingBalance balance(kShare);
    const double lost = Lost(balance, 1, kSteps, asking, 0);
    EXPECT_LE(lost, 2 * kCredit + kSettle * asking + kShare * kSteps) << asking;
    EXPECT_GE(lost, 0.9 * kShare * kSteps) << asking << ": it is looked at again";
  }
}

TEST(AskingBalance, WhatLosesATenthOfAStepIsOffWithin200Steps) {
  AskingBalance balance(kShare);
  Lost(balance, 64, 200, 0.3, 0.2);
  EXPECT_FALSE(balance.may_ask(64));
}

TEST(AskingBalance, WhatCostsLessThanItsShareIsAlwaysAsked) {
  AskingBalance balance(kShare);
  EXPECT_NEAR(Lost(balance, 1, 10'000, 0.009, 0), 10'000 * 0.009, 1e-6);
}

// A prompt that takes 24 steps to read, for an answer that is a third faster then.
TEST(AskingBalance, APromptThatIsReadForALongAnswerIsPaidBack) {
  AskingBalance balance(kShare);
  for (int answer = 0; answer < 20; ++answer) {
    Lost(balance, 1, 3, 8, 0);
    EXPECT_NEAR(Lost(balance, 1, 200, 0.1, 0.43), -200 * 0.33, 1e-6) << "answer " << answer;
  }
}

TEST(AskingBalance, WhatWasSavedLongAgoPaysForItsCreditOnly) {
  AskingBalance balance(kShare);
  Lost(balance, 1, 10'000, 0.1, 0.2);
  Lost(balance, 1, 200, 0.6, 0.5);
  EXPECT_TRUE(balance.may_ask(1));
  Lost(balance, 1, 150, 0.6, 0.5);
  EXPECT_FALSE(balance.may_ask(1));
}

TEST(AskingBalance, EachNumberOfSequencesHasItsOwn) {
  AskingBalance balance(kShare);
  Lost(balance, 64, 200, 1, 0);
  EXPECT_FALSE(balance.may_ask(64));
  EXPECT_FALSE(balance.may_ask(127));
  EXPECT_TRUE(balance.may_ask(63));
  EXPECT_TRUE(balance.may_ask(128));
  EXPECT_TRUE(balance.may_ask(1));
}

TEST(AskingBalance, OneStallIsNotWhatAskingTakes) {
  AskingBalance balance(kShare);
  EXPECT_GT(Lost(balance, 1, 1, 1000, 0), 0);
  Lost(balance, 1, 1000, 0.001, 0);
  EXPECT_TRUE(balance.may_ask(1));
}

}  // namespace
}  // namespace terrace
