#include "worker/speculative/best_trees.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::Each;

constexpr uint32_t kMost = 8;  // tokens of a draft

// Costs of a step that takes 1 second without drafts, `per_token` more for each token.
StepCosts Costs(uint32_t decodes, double per_token) {
  StepCosts costs;
  for (uint32_t drafted = 0; drafted <= 64; ++drafted)
    costs.Learn({.decodes = decodes}, drafted, 1 + per_token * drafted);
  return costs;
}

// Of `right` tokens for one.
Acceptance Right(double right) {
  Acceptance acceptance(AcceptanceMemory{.kept = 1, .most_trials = 1e4, .doubt = 0});
  for (int i = 0; i < 5000; ++i) acceptance.Add(1, std::fmod(i * right, 1) + right >= 1 ? 1 : 0);
  return acceptance;
}

DraftableStep StepOf(const StepCosts& costs, uint32_t decodes, uint32_t room = 128) {
  return {.load = {.decodes = decodes},
          .room = room,
          .max_tokens = kMost,
          .prior = 0.6,
          .branch_prior = 0.1,
          .costs = &costs};
}

class PlainBill : public StepBill {
 public:
  explicit PlainBill(const DraftableStep& step) : step_(step) {}
  double Add(const DraftCandidate&, uint32_t, double) override {
    return step_.seconds() + step_.costs->ExtraSeconds(step_.load, ++tokens_);
  }

 private:
  const DraftableStep& step_;
  uint32_t tokens_ = 0;
};

DraftLengths Best(const DraftableStep& step, std::span<const DraftCandidate> candidates) {
  PlainBill bill(step);
  return BestTrees(step, candidates, BestLengths(step, candidates, bill));
}

// By definition.
double RateOf(const DraftableStep& step, std::span<const DraftCandidate> candidates,
              const DraftLengths& lengths) {
  double tokens = step.load.decodes;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const double right = candidates[i].acceptance->Rate(step.prior);
    for (uint32_t k = 1; k <= lengths.chains[i]; ++k) tokens += std::pow(right, k);
    if (lengths.branches[i] == 0) continue;
    const double first = candidates[i].branch->Rate(step.branch_prior);
    for (uint32_t k = 0; k < lengths.branches[i]; ++k) tokens += first * std::pow(right, k);
  }
  return tokens / (step.seconds() + step.costs->ExtraSeconds(step.load, lengths.tokens()));
}

DraftLengths Chains(const DraftableStep& step, std::span<const DraftCandidate> candidates) {
  PlainBill bill(step);
  return {.chains = BestLengths(step, candidates, bill),
          .branches = std::vector<uint32_t>(candidates.size(), 0)};
}

TEST(BestTrees, HaveNoBranchWhereNoDraftPaysOrNoneIsThere) {
  const StepCosts cheap = Costs(1, 0.001), dear = Costs(1, 2);
  const Acceptance right = Right(0.5), branch = Right(0.4), never = Right(0);
  const struct {
    const char* name;
    const StepCosts& costs;
    DraftCandidate candidate;
  } cases[] = {
      {"no branch", cheap, {.most = kMost, .acceptance = &right, .most_branch = 0, .branch = &branch}},
      {"never right", cheap, {.most = kMost, .acceptance = &right, .most_branch = 4, .branch = &never}},
      {"no draft", cheap, {.most = 0, .acceptance = &right, .most_branch = 4, .branch = &branch}},
      {"drafts are never right",
       cheap,
       {.most = kMost, .acceptance = &never, .most_branch = 4, .branch = &branch}},
      {"tokens are dear", dear, {.most = kMost, .acceptance = &right, .most_branch = 4, .branch = &branch}}};
  for (const auto& c : cases) {
    const DraftableStep step = StepOf(c.costs, 1);
    const DraftLengths best = Best(step, {&c.candidate, 1});
    EXPECT_THAT(best.branches, Each(0)) << c.name;
    EXPECT_EQ(best.chains, Chains(step, {&c.candidate, 1}).chains) << c.name;
  }
}

TEST(BestTrees, TakeABranchWhereTokensAreCheapAndTheSecondGuessIsOftenRight) {
  const StepCosts costs = Costs(1, 0.01);
  const Acceptance right = Right(0.5), branch = Right(0.4);
  const DraftCandidate candidate{.most = kMost, .acceptance = &right, .most_branch = 4, .branch = &branch};
  const DraftLengths best = Best(StepOf(costs, 1), {&candidate, 1});
  EXPECT_GT(best.chains[0], 2u);
  EXPECT_GT(best.branches[0], 1u) << "several make up for the token that is computed again";
}

// Against every combination of lengths.
TEST(BestTrees, AreNeverWorseThanChainsAndRarelyThanTheBestTree) {
  uint32_t trees = 0, chains = 0, near = 0;
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(Concat("seed ", seed));
    std::mt19937 random(seed);
    const auto draw = [&](double low, double high) {
      return std::uniform_real_distribution<double>(low, high)(random);
    };
    const StepCosts costs = Costs(2, std::pow(10, draw(-3, 0)));
    std::vector<Acceptance> acceptances;
    for (int i = 0; i < 2; ++i) {
      const double right = draw(0, 1);
      acceptances.push_back(Right(right));
      acceptances.push_back(Right((1 - right) * draw(0, 1)));
    }
    const auto most = [&] { return static_cast<uint32_t>(draw(0, 4.999)); };
    const DraftCandidate candidates[] = {{.id = 0,
                                          .most = most(),
                                          .acceptance = &acceptances[0],
                                          .most_branch = most(),
                                          .branch = &acceptances[1]},
                                         {.id = 1,
                                          .most = most(),
                                          .acceptance = &acceptances[2],
                                          .most_branch = most(),
                                          .branch = &acceptances[3]}};
    const DraftableStep step = StepOf(costs, 2, /*room=*/static_cast<uint32_t>(draw(0, 20)));
    const DraftLengths got = Best(step, candidates), plain = Chains(step, candidates);
    EXPECT_LE(got.tokens(), step.room);
    double best = 0;
    for (uint32_t a = 0; a <= candidates[0].most; ++a) {
      for (uint32_t b = 0; b <= candidates[1].most; ++b) {
        for (uint32_t c = 0; c <= (a > 0 ? candidates[0].most_branch : 0); ++c) {
          for (uint32_t d = 0; d <= (b > 0 ? candidates[1].most_branch : 0); ++d) {
            const DraftLengths lengths{.chains = {a, b}, .branches = {c, d}};
            if (lengths.tokens() <= step.room) best = std::max(best, RateOf(step, candidates, lengths));
          }
        }
      }
    }
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_LE(got.chains[i], candidates[i].most);
      EXPECT_LE(got.branches[i], candidates[i].most_branch);
      EXPECT_TRUE(got.chains[i] > 0 || got.branches[i] == 0) << "a branch without its draft";
    }
    const double rate = RateOf(step, candidates, got), chain_rate = RateOf(step, candidates, plain);
    const bool has_branch = got.branches[0] + got.branches[1] > 0;
    if (has_branch) {
      EXPECT_GT(rate, 1.019 * chain_rate);
    } else {
      EXPECT_EQ(got.chains, plain.chains);
    }
    (has_branch ? trees : chains) += 1;
    near += rate > 0.93 * best;
  }
  EXPECT_GT(trees, 30u);
  EXPECT_GT(chains, 30u);
  EXPECT_GT(near, 270u) << "of 300";
}

TEST(BestTrees, BranchesOfManySequencesShareTheRoom) {
  const StepCosts costs = Costs(8, 0.001);
  const Acceptance right = Right(0.3), branch = Right(0.5);
  std::vector<DraftCandidate> candidates;
  for (uint32_t i = 0; i < 8; ++i)
    candidates.push_back({.id = i, .most = kMost, .acceptance = &right, .most_branch = 3, .branch = &branch});
  for (const uint32_t room : {0u, 1u, 5u, 17u, 60u}) {
    const DraftLengths best = Best(StepOf(costs, 8, room), candidates);
    EXPECT_LE(best.tokens(), room) << room;
  }
}

}  // namespace
}  // namespace terrace
