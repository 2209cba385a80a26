#include "router/balance/slow_start.h"

#include <algorithm>
#include <deque>
#include <vector>

#include "base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using enum BalancePolicy;

class SlowStart : public ::testing::TestWithParam<BalancePolicy> {
 protected:
  size_t Pick(uint64_t rotation) {
    return PickBySlowStart(*balancer_, {.prompt_tokens = 1000, .rotation = rotation}, candidates_, weights_);
  }
  // The share of 20,000 picks that each candidate gets while so many sequences run at any time. Those that
  // end are drawn, so all last equally long.
  std::vector<double> Shares(size_t running) {
    constexpr uint64_t kRounds = 20'000;
    candidates_.assign(candidates_.size(), {});
    std::vector<double> shares(candidates_.size());
    std::vector<size_t> where;
    for (uint64_t round = 0; round < kRounds; ++round) {
      if (where.size() > running) {
        size_t& ended = where[RandomBits(/*seed=*/5, round) % where.size()];
        --candidates_[ended].sequences;
        std::swap(ended, where.back());
        where.pop_back();
      }
      const size_t picked = Pick(round);
      ++candidates_[picked].sequences;
      where.push_back(picked);
      shares[picked] += 1.0 / kRounds;
    }
    return shares;
  }

  const std::unique_ptr<Balancer> balancer_ = MakeBalancer(GetParam());
  std::vector<Candidate> candidates_ = std::vector<Candidate>(10);
  std::vector<float> weights_ = std::vector<float>(10, 1);
};
INSTANTIATE_TEST_SUITE_P(Policies, SlowStart, ::testing::ValuesIn(kBalancePolicies),
                         [](const auto& param_info) {
                           return std::string(BalancePolicyName(param_info.param));
                         });

TEST_P(SlowStart, EqualWeightsChangeNothing) {
  for (const float weight : {0.1f, 0.55f, 1.0f}) {
    weights_.assign(weights_.size(), weight);
    for (uint64_t rotation = 0; rotation < 1000; ++rotation) {
      for (size_t i = 0; i < candidates_.size(); ++i) {
        candidates_[i].sequences = static_cast<uint32_t>(RandomBits(1, rotation, i) % 9);
      }
      EXPECT_EQ(Pick(rotation), balancer_->Pick({.prompt_tokens = 1000, .rotation = rotation}, candidates_));
    }
  }
}

TEST_P(SlowStart, AnIdleTierGivesTheNewOneItsShare) {
  for (const float weight : {0.1f, 0.5f, 0.9f}) {
    weights_[3] = weight;
    const double fair = weight / (9 + weight);
    EXPECT_NEAR(Shares(/*running=*/0)[3], fair, 0.1 * fair + 0.002) << weight;
  }
}

TEST_P(SlowStart, ABusyTierDoesNotGiveItMore) {
  for (const float weight : {0.1f, 0.5f, 0.9f}) {
    weights_[3] = weight;
    const auto shares = Shares(/*running=*/100);
    const double fair = weight / (9 + weight);
    EXPECT_LE(shares[3], 1.1 * fair + 0.01) << weight;  // one sequence of a hundred may be more
    EXPECT_GE(shares[3], 0.2 * fair) << weight;
  }
}

TEST_P(SlowStart, TheFirstOfATierGetsAll) {
  candidates_.resize(1);
  weights_ = {0.1f};
  EXPECT_EQ(Pick(0), 0u);
}

TEST_P(SlowStart, ReplicasThatWereStartedTogetherAreEquals) {
  weights_ = {0.104f, 0.1f, 0.102f, 0.101f};  // within tenths of a second
  candidates_.assign(weights_.size(), {});
  for (uint64_t rotation = 0; rotation < 1000; ++rotation) {
    for (size_t i = 0; i < candidates_.size(); ++i)
      candidates_[i].sequences = static_cast<uint32_t>(RandomBits(1, rotation, i) % 9);
    EXPECT_EQ(Pick(rotation), balancer_->Pick({.prompt_tokens = 1000, .rotation = rotation}, candidates_));
  }
}

TEST_P(SlowStart, OnlyTheRatioOfTheWeightsCounts) {
  weights_.assign(weights_.size(), 0.2f);
  weights_[3] = 0.1f;  // it came a moment later
  EXPECT_NEAR(Shares(/*running=*/0)[3], 0.5 / 9.5, 0.01);
}

}  // namespace
}  // namespace terrace
