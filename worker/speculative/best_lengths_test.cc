#include "worker/speculative/best_lengths.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr double kPlain = 1;  // seconds of a step without drafts

// Costs what it is told, by the number of tokens, and keeps what it was asked.
class FakeBill : public StepBill {
 public:
  explicit FakeBill(std::function<double(size_t tokens)> seconds) : seconds_(std::move(seconds)) {}
  double Add(const DraftCandidate& candidate, uint32_t index, double) override {
    asked.push_back({candidate.id, index});
    return seconds_(asked.size());
  }

  struct Token {
    uint64_t id = 0;
    uint32_t index = 0;
  };
  std::vector<Token> asked;

 private:
  const std::function<double(size_t)> seconds_;
};

double Free(size_t) { return kPlain; }

StepCosts KnownCosts(uint32_t decodes) {
  StepCosts costs;
  costs.Learn({.decodes = decodes}, 0, kPlain);
  return costs;
}

Acceptance RightOf(uint32_t compared, uint32_t right) {
  Acceptance acceptance;
  for (int i = 0; i < 20; ++i) acceptance.Add(compared, right);
  return acceptance;
}

DraftableStep StepOf(const StepCosts& costs, uint32_t decodes) {
  return {.load = {.decodes = decodes}, .room = 128, .max_tokens = 8, .prior = 0.6, .costs = &costs};
}

TEST(BestLengths, AreNoneWhileItIsNotKnownWhatAStepTakes) {
  const StepCosts unknown, known = KnownCosts(1);
  const Acceptance good = RightOf(8, 8);
  const DraftCandidate candidate{.most = 8, .left = 100, .acceptance = &good};
  FakeBill bill(Free);
  EXPECT_EQ(BestLengths(StepOf(unknown, 1), {&candidate, 1}, bill), std::vector<uint32_t>{0});
  EXPECT_TRUE(bill.asked.empty());
  EXPECT_EQ(BestLengths(StepOf(known, 1), {&candidate, 1}, bill), std::vector<uint32_t>{8});
}

TEST(BestLengths, WhatCostsNothingIsTakenAsFarAsItMayBeAndIsWorthAnything) {
  const StepCosts costs = KnownCosts(3);
  const Acceptance good = RightOf(8, 8), bad = RightOf(8, 0);
  const DraftCandidate candidates[] = {{.id = 0, .most = 3, .acceptance = &good},
                                       {.id = 1, .most = 100, .acceptance = &good},
                                       {.id = 2, .most = 8, .acceptance = &bad}};
  FakeBill bill(Free);
  const std::vector<uint32_t> lengths = BestLengths(StepOf(costs, 3), candidates, bill);
  EXPECT_EQ(lengths, (std::vector<uint32_t>{3, 8, 0}));
}

TEST(BestLengths, TheRoomGoesToTheMostValuableAndADraftKeepsItsOrder) {
  const StepCosts costs = KnownCosts(2);
  const Acceptance good = RightOf(8, 8), fair = RightOf(8, 4);
  const DraftCandidate candidates[] = {{.id = 0, .most = 8, .acceptance = &fair},
                                       {.id = 1, .most = 4, .acceptance = &good}};
  DraftableStep step = StepOf(costs, 2);
  step.room = 5;
  FakeBill bill(Free);
  EXPECT_EQ(BestLengths(step, candidates, bill), (std::vector<uint32_t>{1, 4}));
  ASSERT_EQ(bill.asked.size(), 5u);
  for (uint32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(bill.asked[i].id, 1u);
    EXPECT_EQ(bill.asked[i].index, i);
  }
  step.room = 0;
  EXPECT_EQ(BestLengths(step, candidates, bill), (std::vector<uint32_t>{0, 0}));
}

TEST(BestLengths, OfASequenceThatIsNewThePriorIsBelieved) {
  const StepCosts costs = KnownCosts(1);
  const Acceptance unknown;
  const DraftCandidate candidate{.most = 8, .acceptance = &unknown};
  DraftableStep step = StepOf(costs, 1);
  for (const double prior : {0.0, 0.9}) {
    step.prior = prior;
    FakeBill bill(Free);
    EXPECT_EQ(BestLengths(step, {&candidate, 1}, bill).at(0) > 0, prior > 0) << prior;
  }
}

// Against every other number of the most valuable tokens.
TEST(BestLengths, GiveTheMostTokensASecondAndClearlyMoreThanNone) {
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto draw = [&](uint32_t low, uint32_t high) {
      return std::uniform_int_distribution<uint32_t>(low, high)(random);
    };
    const uint32_t decodes = draw(1, 8);
    const StepCosts costs = KnownCosts(decodes);
    std::vector<Acceptance> acceptance;
    for (uint32_t i = 0; i < decodes; ++i) acceptance.push_back(RightOf(8, draw(0, 8)));
    std::vector<DraftCandidate> candidates;
    for (uint32_t i = 0; i < decodes; ++i)
      candidates.push_back({.id = i, .most = draw(0, 10), .acceptance = &acceptance[i]});
    std::vector<double> seconds = {kPlain};
    while (seconds.size() <= 64) seconds.push_back(seconds.back() + draw(0, 40) / 100.0);
    FakeBill bill([&](size_t tokens) { return seconds[tokens]; });
    const DraftableStep step = StepOf(costs, decodes);
    const std::vector<uint32_t> lengths = BestLengths(step, candidates, bill);

    const auto worth = [&](uint64_t id, uint32_t index) {
      return std::pow(acceptance[id].Rate(step.prior), index + 1);
    };
    double all = 0, most = 1.04 * decodes / kPlain, last = 1;
    for (size_t i = 0; i < bill.asked.size(); ++i) {
      const double next = worth(bill.asked[i].id, bill.asked[i].index);
      EXPECT_LE(next, last + 1e-9) << "the most valuable come first";
      last = next;
      all += next;
      most = std::max(most, (decodes + all) / seconds[i + 1]);
    }
    double chosen = decodes;
    uint32_t tokens = 0;
    for (size_t i = 0; i < candidates.size(); ++i) {
      EXPECT_LE(lengths[i], std::min(candidates[i].most, step.max_tokens));
      for (uint32_t index = 0; index < lengths[i]; ++index) chosen += worth(i, index);
      tokens += lengths[i];
    }
    if (tokens == 0) {
      EXPECT_NEAR(most, 1.04 * decodes / kPlain, 1e-9);
    } else {
      EXPECT_NEAR(chosen / seconds[tokens], most, 1e-9);
    }
  }
}

}  // namespace
}  // namespace terrace
