#include "worker/speculative/model_asking.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr uint32_t kMaxPass = 256;
constexpr double kShare = 0.005;

Acceptance Good() {
  Acceptance acceptance;
  for (int i = 0; i < 20; ++i) acceptance.Add(4, 4);
  return acceptance;
}

// Steps of `decodes` take 1 s.
StepCosts KnownCosts(uint32_t decodes) {
  StepCosts costs;
  costs.Learn({.decodes = decodes}, 0, 1);
  return costs;
}

DraftableStep StepOf(const StepCosts& costs, uint32_t decodes) {
  return {.load = {.decodes = decodes}, .room = 128, .max_tokens = 8, .prior = 0.6, .costs = &costs};
}

// A pass of one token takes 0.05 s, one of 1,024 takes 20 s.
void LearnPasses(ModelAsking& asking) {
  const uint32_t one[] = {1}, many[] = {1024};
  for (int i = 0; i < 3; ++i) {
    asking.LearnDrafting(one, 0.05);
    asking.LearnDrafting(many, 20);
  }
}

TEST(ModelAsking, AsksForLessWhereItsPassesCostMore) {
  const StepCosts costs = KnownCosts(1);
  const Acceptance good = Good();
  const DraftCandidate candidate{.most = 8, .left = 100, .acceptance = &good};
  const auto asked = [&](double pass_seconds) {
    ModelAsking asking(kMaxPass, kShare);
    EXPECT_TRUE(asking.WantsDrafts());
    const uint32_t one[] = {1};
    asking.LearnDrafting(one, pass_seconds);
    return asking.Ask(StepOf(costs, 1), {&candidate, 1}).at(0);
  };
  EXPECT_EQ(asked(0.05), 8u);
  EXPECT_EQ(asked(2), 0u) << "a token of it takes as long as two of the answer";
}

TEST(ModelAsking, WhatItHasToReadIsWrittenOffOverTheAnswer) {
  const StepCosts costs = KnownCosts(1);
  const Acceptance good = Good();
  const auto asked = [&](uint32_t missing, uint32_t left) {
    ModelAsking asking(kMaxPass, kShare);
    LearnPasses(asking);
    const DraftCandidate candidate{.most = 8, .missing = missing, .left = left, .acceptance = &good};
    return asking.Ask(StepOf(costs, 1), {&candidate, 1}).at(0);
  };
  EXPECT_GT(asked(1, 2), 0u);
  EXPECT_EQ(asked(1000, 2), 0u);
  EXPECT_GT(asked(1000, 500), 0u);
}

// As many tokens as it may get still, few answers get.
TEST(ModelAsking, AnAnswerIsExpectedToBeAsLongAsAnswersWereLately) {
  const StepCosts costs = KnownCosts(1);
  const Acceptance good = Good();
  ModelAsking asking(kMaxPass, kShare);
  LearnPasses(asking);
  const DraftCandidate candidate{.most = 8, .missing = 1000, .left = 500, .acceptance = &good};
  const auto asked = [&] { return asking.Ask(StepOf(costs, 1), {&candidate, 1}).at(0); };
  EXPECT_GT(asked(), 0u);
  for (int answer = 0; answer < 100; ++answer) asking.LearnAnswer(4);
  EXPECT_EQ(asked(), 0u);
  for (int answer = 0; answer < 100; ++answer) asking.LearnAnswer(1000);
  EXPECT_GT(asked(), 0u);
}

TEST(ModelAsking, WhoIsNotWorthReadingForTakesNothingFromTheOthers) {
  const StepCosts costs = KnownCosts(2);
  const Acceptance good = Good();
  ModelAsking asking(kMaxPass, kShare);
  LearnPasses(asking);
  const DraftCandidate candidates[] = {{.id = 1, .most = 8, .missing = 1, .left = 2, .acceptance = &good},
                                       {.id = 2, .most = 8, .missing = 1000, .left = 2, .acceptance = &good}};
  const std::vector<uint32_t> lengths = asking.Ask(StepOf(costs, 2), candidates);
  EXPECT_EQ(lengths[0], asking.Ask(StepOf(costs, 2), {candidates, 1}).at(0));
  EXPECT_GT(lengths[0], 1u);
  EXPECT_EQ(lengths[1], 0u);
}

// Its drafts were wrong, so it gets none, until enough was saved up to look again.
TEST(ModelAsking, LooksNowAndThenAtWhomItDoesNotDraftFor) {
  const StepCosts costs = KnownCosts(1);
  Acceptance wrong;
  for (int i = 0; i < 10; ++i) wrong.Add(4, 0);
  for (int i = 0; i < 50; ++i) wrong.Age();
  const DraftCandidate candidate{.most = 8, .left = 100, .acceptance = &wrong};
  ModelAsking asking(kMaxPass, kShare);
  LearnPasses(asking);
  uint32_t probes = 0;
  for (int step = 0; step < 1000; ++step) {
    const uint32_t asked = asking.Ask(StepOf(costs, 1), {&candidate, 1}).at(0);
    EXPECT_LE(asked, 1u);
    probes += asked;
    asking.LearnStep(1);
  }
  EXPECT_GT(probes, 0u);
  EXPECT_LE(probes * 0.05, 1000 * kShare + 1e-6);
}

}  // namespace
}  // namespace terrace
