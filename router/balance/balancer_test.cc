#include "router/balance/balancer.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using enum BalancePolicy;
using ::testing::Each;

size_t Pick(BalancePolicy policy, const std::vector<Candidate>& candidates, uint64_t rotation = 0,
            uint32_t prompt_tokens = 1000) {
  return MakeBalancer(policy)->Pick({.prompt_tokens = prompt_tokens, .rotation = rotation}, candidates);
}

class EveryPolicy : public ::testing::TestWithParam<BalancePolicy> {};
INSTANTIATE_TEST_SUITE_P(All, EveryPolicy, ::testing::ValuesIn(kBalancePolicies), [](const auto& param_info) {
  return std::string(BalancePolicyName(param_info.param));
});

TEST_P(EveryPolicy, EqualsGetEqualShares) {
  std::map<size_t, int> picks;
  const std::vector<Candidate> candidates(3, {.sequences = 5, .cached_tokens = 16, .queued_tokens = 9});
  constexpr int kRounds = 3000;
  for (uint64_t rotation = 0; rotation < kRounds; ++rotation) ++picks[Pick(GetParam(), candidates, rotation)];
  for (size_t i = 0; i < candidates.size(); ++i) EXPECT_NEAR(picks[i], kRounds / 3, 150) << i;  // of sigma 26
}

TEST_P(EveryPolicy, TheSameArgumentsGiveTheSamePickAndOneCandidateIsIt) {
  const std::vector<Candidate> candidates = {{.sequences = 2}, {.sequences = 1}, {.sequences = 3}};
  for (uint64_t rotation = 0; rotation < 20; ++rotation) {
    EXPECT_EQ(Pick(GetParam(), candidates, rotation), Pick(GetParam(), candidates, rotation));
    EXPECT_EQ(Pick(GetParam(), {{.sequences = 1000}}, rotation), 0u);
  }
}

TEST_P(EveryPolicy, ItsNameIsRead) {
  EXPECT_EQ(ParseBalancePolicy(BalancePolicyName(GetParam())), GetParam());
  EXPECT_EQ(ParseBalancePolicy("best"), std::nullopt);
}

TEST(RoundRobin, TakesEachInTurn) {
  const std::vector<Candidate> candidates = {{.sequences = 9}, {}, {.cached_tokens = 999}};
  for (uint64_t rotation = 0; rotation < 9; ++rotation) {
    EXPECT_EQ(Pick(kRoundRobin, candidates, rotation), rotation % 3);
  }
}

TEST(LeastLoaded, TakesTheFewestSequences) {
  const std::vector<Candidate> candidates = {{.sequences = 4}, {.sequences = 2}, {.sequences = 3}};
  for (uint64_t rotation = 0; rotation < 9; ++rotation)
    EXPECT_EQ(Pick(kLeastLoaded, candidates, rotation), 1u);
}

TEST(PowerOfTwo, TheWorstIsNeverPickedAndTheBestNotAlways) {
  const std::vector<Candidate> candidates = {{.sequences = 4}, {.sequences = 2}, {.sequences = 3}};
  std::map<size_t, int> picks;
  for (uint64_t rotation = 0; rotation < 3000; ++rotation) ++picks[Pick(kPowerOfTwo, candidates, rotation)];
  EXPECT_EQ(picks[0], 0);
  EXPECT_NEAR(picks[1], 2000, 150);  // is among two of three
  EXPECT_NEAR(picks[2], 1000, 150);
}

TEST(Prefix, TheCachedPromptIsWorthTheQueueThatItSavesToItselfAndToOthers) {
  const Candidate cold = {.cached_tokens = 0, .queued_tokens = 0};
  const auto pick = [&](const Candidate& warm) { return Pick(kPrefix, {cold, warm}); };
  EXPECT_EQ(pick({.cached_tokens = 512}), 1u);
  // On average q / 2 wait, so of 1,000 tokens: q = 512 (1 + q / 2,000).
  EXPECT_EQ(pick({.cached_tokens = 512, .queued_tokens = 680}), 1u);
  EXPECT_EQ(pick({.cached_tokens = 512, .queued_tokens = 695}), 0u);
  EXPECT_EQ(pick({.sequences = 3, .cached_tokens = 512}), 1u) << "a few sequences beside it do not matter";
  EXPECT_EQ(pick({.sequences = 3, .cached_tokens = 16}), 0u) << "for one block they do";
}

// With nobody else in a queue the wait is what counts; where all replicas are behind, that nothing is
// computed twice.
TEST(Prefix, TheBusierTheTierTheMoreItKeepsToTheCache) {
  const auto pick = [](uint64_t queued) {
    return Pick(kPrefix, {{.queued_tokens = queued},
                          {.cached_tokens = 512, .queued_tokens = queued + 1100},
                          {.queued_tokens = queued}});
  };
  EXPECT_NE(pick(0), 1u);
  EXPECT_EQ(pick(1000), 1u);
  EXPECT_EQ(pick(uint64_t{1} << 40), 1u) << "no overflow";
}

TEST(Prefix, MoreThanThePromptIsNotCached) {
  EXPECT_EQ(Pick(kPrefix, {{.cached_tokens = 5000, .queued_tokens = 1}, {.cached_tokens = 100}}, 0, 100), 1u);
}

// The least cost among those that are not full, of equals the first in turn.
TEST(Prefix, AgreesWithItsDefinition) {
  std::mt19937 random(1);
  for (uint64_t round = 0; round < 2000; ++round) {
    std::vector<Candidate> candidates(1 + random() % 40);
    const uint32_t most_sequences = 1 + random() % 12;
    double sequences = 1;
    uint64_t queued = 0;
    for (Candidate& candidate : candidates) {
      candidate = {.sequences = static_cast<uint32_t>(random() % most_sequences),
                   .cached_tokens = static_cast<uint32_t>(random() % 4 * 400),
                   .queued_tokens = random() % 3 * 32};
      sequences += candidate.sequences;
      queued += candidate.queued_tokens;
    }
    const uint64_t delay = queued / candidates.size() * 256 / 1000;  // of others, in 256ths
    const double mean = sequences / static_cast<double>(candidates.size());
    const double bound = std::max(4.0, std::floor(1.25 * mean) + 1);
    const auto cost = [&](const Candidate& candidate) {
      const uint64_t own = 1000 - std::min<uint64_t>(1000, candidate.cached_tokens);
      return candidate.queued_tokens + 32 * candidate.sequences + own + own * delay / 256;
    };
    std::optional<size_t> want;
    for (size_t i = 0; i < candidates.size(); ++i) {
      const size_t here = (round + i) % candidates.size();
      if (candidates[here].sequences >= bound) continue;
      if (!want.has_value() || cost(candidates[here]) < cost(candidates[*want])) want = here;
    }
    ASSERT_EQ(Pick(kPrefix, candidates, round), want) << "round " << round;
  }
}

// However hot a prefix, and whoever has it: no replica gets more than its share and a quarter.
TEST(Prefix, AHotPrefixSpillsOver) {
  std::vector<Candidate> candidates(8);
  candidates[3].cached_tokens = 1000;  // and nobody else ever learns it
  for (uint64_t rotation = 0; rotation < 400; ++rotation) {
    ++candidates[Pick(kPrefix, candidates, rotation)].sequences;
    for (const Candidate& candidate : candidates) {
      ASSERT_LE(candidate.sequences, std::max(4.0, 1.25 * (static_cast<double>(rotation) + 1) / 8 + 1));
    }
  }
  EXPECT_GT(candidates[3].sequences, 50u) << "it has more than the others";
  std::vector<uint32_t> others;
  for (const Candidate& candidate : candidates) {
    if (candidate.cached_tokens == 0) others.push_back(candidate.sequences);
  }
  EXPECT_THAT(others, Each(::testing::AllOf(::testing::Ge(45u), ::testing::Le(50u))));
}

}  // namespace
}  // namespace terrace
