#include "worker/sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>

#include "base/rng.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> RandomLogits(size_t count, uint64_t seed, double spread = 6) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<float>((RandomUniform(seed, i) - 0.5) * spread);
  return out;
}

int32_t SampleToken(const std::vector<float>& logits, const SamplingParams& params, uint64_t index = 0,
                    const TokenCounts& counts = {}) {
  Sampler sampler;
  const auto sampled = sampler.Sample(logits, params, counts, index, {});
  EXPECT_TRUE(sampled.ok()) << sampled.status();
  return sampled.ok() ? sampled->token : -1;
}

// The distribution by its definition, the slow way: every step over the whole vocabulary.
std::vector<double> Distribution(const std::vector<float>& logits, const SamplingParams& p,
                                 const std::map<int32_t, uint32_t>& seen) {
  std::vector<double> adjusted(logits.begin(), logits.end());
  for (const auto& [token, bias] : p.logit_bias) adjusted[static_cast<size_t>(token)] += bias;
  for (const auto& [token, generated] : seen) {
    double& logit = adjusted[static_cast<size_t>(token)];
    logit = logit < 0 ? logit * p.repetition_penalty : logit / p.repetition_penalty;
    logit -= (generated > 0 ? p.presence_penalty : 0) + generated * p.frequency_penalty;
  }
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return adjusted[a] > adjusted[b]; });
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < order.size()) order.resize(static_cast<size_t>(p.top_k));
  std::vector<double> probabilities(logits.size(), 0);
  double total = 0;
  for (const size_t i : order)
    total += probabilities[i] = std::exp((adjusted[i] - adjusted[order[0]]) / p.temperature);
  for (double& probability : probabilities) probability /= total;
  double before = 0, kept = 0;
  for (const size_t i : order) {
    const double probability = probabilities[i];
    const bool keep = i == order[0] || ((p.top_p == 1 || before < p.top_p) &&
                                        probability >= p.min_p * probabilities[order[0]]);
    before += probability;
    if (!keep) probabilities[i] = 0;
    kept += probabilities[i];
  }
  for (double& probability : probabilities) probability /= kept;
  return probabilities;
}

// `draws` draws against the distribution. Chi-square over the tokens expected at least 5 times; its mean is
// the number of degrees of freedom k, its deviation sqrt(2 k): 5 deviations are passed once in a million (and
// seeds are fixed).
void ExpectDraws(const std::vector<float>& logits, SamplingParams params,
                 const std::map<int32_t, uint32_t>& seen, int draws = 100'000) {
  TokenCounts counts;
  for (const auto& [token, generated] : seen) {
    counts.AddPrompt(std::vector{token});
    for (uint32_t i = 0; i < generated; ++i) counts.AddGenerated(token);
  }
  const std::vector<double> want = Distribution(logits, params, seen);
  std::vector<int> got(logits.size(), 0);
  Sampler sampler;
  for (int i = 0; i < draws; ++i) {
    ++got[static_cast<size_t>(sampler.Sample(logits, params, counts, static_cast<uint64_t>(i), {})->token)];
  }
  double chi_square = 0, freedom = -1;
  for (size_t i = 0; i < want.size(); ++i) {
    const double expected = want[i] * draws;
    if (want[i] == 0) {
      EXPECT_EQ(got[i], 0) << "token " << i << " was cut";
    }
    if (expected < 5) continue;
    chi_square += (got[i] - expected) * (got[i] - expected) / expected;
    ++freedom;
  }
  if (freedom >= 1) {
    EXPECT_LT(chi_square, freedom + 5 * std::sqrt(2 * freedom) + 10);
  }
}

TEST(Sampler, DrawsFollowTheDefinition) {
  const auto logits = RandomLogits(40, /*seed=*/1);
  const std::map<int32_t, uint32_t> none, seen = {{0, 0}, {3, 1}, {7, 5}, {11, 2}, {39, 0}};
  const struct {
    const char* name;
    SamplingParams params;
    bool penalties = false;
  } cases[] = {
      {"plain", {.seed = 2}},
      {"cold", {.temperature = 0.3f, .seed = 3}},
      {"hot", {.temperature = 2, .seed = 4}},
      {"top-k", {.top_k = 5, .seed = 5}},
      {"top-k of 1", {.top_k = 1, .seed = 6}},
      {"top-k past the vocabulary", {.top_k = 1000, .seed = 7}},
      {"top-p", {.top_p = 0.7f, .seed = 8}},
      {"tiny top-p", {.top_p = 1e-7f, .seed = 9}},
      {"min-p", {.min_p = 0.1f, .seed = 10}},
      {"min-p of 1", {.min_p = 1, .seed = 11}},
      {"all cuts", {.temperature = 1.3f, .top_k = 20, .top_p = 0.9f, .min_p = 0.05f, .seed = 12}},
      {"bias", {.logit_bias = {{2, 3.f}, {5, -4.f}}, .seed = 13}},
      {"repetition", {.repetition_penalty = 1.7f, .seed = 14}, true},
      {"presence and frequency", {.presence_penalty = 0.8f, .frequency_penalty = 0.4f, .seed = 15}, true},
      {"rewards",
       {.repetition_penalty = 0.6f, .presence_penalty = -1, .frequency_penalty = -0.2f, .seed = 16},
       true},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    ExpectDraws(logits, c.params, c.penalties ? seen : none);
  }
}

TEST(Sampler, DrawsFollowTheDefinitionBeyondTheFirstSortedTokens) {
  ExpectDraws(RandomLogits(1000, /*seed=*/20, /*spread=*/1), {.seed = 21}, {}, 20'000);
  ExpectDraws(RandomLogits(1000, /*seed=*/22, /*spread=*/1), {.top_p = 0.8f, .seed = 23}, {}, 20'000);
}

TEST(Sampler, TheDrawIsAFunctionOfSeedAndIndexAlone) {
  const auto logits = RandomLogits(100, /*seed=*/30);
  const SamplingParams params{.seed = 31};
  std::vector<int32_t> forward, backward;
  Sampler sampler;
  for (uint64_t i = 0; i < 50; ++i)
    forward.push_back(sampler.Sample(logits, params, {}, i, {.top = 3})->token);
  for (uint64_t i = 50; i > 0; --i) backward.insert(backward.begin(), SampleToken(logits, params, i - 1));
  EXPECT_EQ(forward, backward);
  size_t same = 0;
  for (uint64_t i = 0; i < 50; ++i) same += SampleToken(logits, {.seed = 32}, i) == forward[i] ? 1 : 0;
  EXPECT_LT(same, 25u);
}

TEST(Sampler, GreedyTakesTheLargestAndOfEqualsTheLowerId) {
  EXPECT_EQ(SampleToken({1, 5, 5, 2}, {.temperature = 0}), 1);
  EXPECT_EQ(SampleToken({-kInfinity, -3, -kInfinity}, {.temperature = 0}), 1);
}

TEST(Sampler, GreedySeesBiasAndPenalties) {
  TokenCounts counts;
  counts.AddGenerated(1);
  EXPECT_EQ(SampleToken({1, 5, 4, 2}, {.temperature = 0, .logit_bias = {{0, 10.f}}}), 0);
  EXPECT_EQ(SampleToken({1, 5, 4, 2}, {.temperature = 0, .repetition_penalty = 2}, 0, counts), 2);
  EXPECT_EQ(SampleToken({1, 5, 4, 2}, {.temperature = 0, .presence_penalty = 1.5f}, 0, counts), 2);
  EXPECT_EQ(SampleToken({1, 5, 4, 2}, {.temperature = 0, .presence_penalty = 0.5f}, 0, counts), 1);
}

TEST(Sampler, PresenceAndFrequencyCountTheAnswerAndNotThePrompt) {
  TokenCounts counts;
  counts.AddPrompt(std::vector{1, 1, 1});
  EXPECT_EQ(
      SampleToken({1, 5, 4, 2}, {.temperature = 0, .presence_penalty = 2, .frequency_penalty = 2}, 0, counts),
      1);
  EXPECT_EQ(SampleToken({1, 5, 4, 2}, {.temperature = 0, .repetition_penalty = 2}, 0, counts), 2);
}

TEST(Sampler, ABiasOf100ForcesAndOfMinus100Bans) {
  const auto logits = RandomLogits(50, /*seed=*/40);
  const auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  for (uint64_t i = 0; i < 1000; ++i) {
    EXPECT_NE(SampleToken(logits, {.logit_bias = {{best, -100.f}}, .seed = 41}, i), best);
    EXPECT_EQ(SampleToken(logits, {.logit_bias = {{17, 100.f}}, .seed = 42}, i), 17);
  }
}

TEST(Sampler, ATinyTemperatureIsGreedy) {
  const std::vector<float> logits = {-1e30f, 3e38f, 2.9e38f, -3e38f, 7};
  for (const float temperature : {1e-3f, 1e-30f, std::numeric_limits<float>::denorm_min()}) {
    for (uint64_t i = 0; i < 20; ++i)
      EXPECT_EQ(SampleToken(logits, {.temperature = temperature, .seed = 50}, i), 1);
  }
}

TEST(Sampler, PenaltiesOfAnySizeStayFinite) {
  TokenCounts counts;
  for (int32_t token = 0; token < 3; ++token) counts.AddGenerated(token);
  const SamplingParams extreme{.repetition_penalty = 1e-38f, .presence_penalty = -2, .frequency_penalty = -2};
  for (const std::vector<float>& logits : {std::vector<float>{1e5f, 9, 8}, {-3e38f, -3e38f, -3e38f}}) {
    EXPECT_GE(SampleToken(logits, extreme, 0, counts), 0);
  }
}

TEST(Sampler, TopPKeepsTheShortestRunThatReachesIt) {
  const std::vector<float> four_equal = {2, 2, 2, 2};  // exactly a quarter each
  const struct {
    float top_p;
    int32_t kept;
  } cases[] = {{0.25f, 1}, {0.2500001f, 2}, {0.5f, 2}, {0.75f, 3}, {0.7500001f, 4}, {1e-9f, 1}, {1, 4}};
  for (const auto& c : cases) {
    int32_t last = 0;
    for (uint64_t i = 0; i < 300; ++i) {
      last = std::max(last, SampleToken(four_equal, {.top_p = c.top_p, .seed = 60}, i));
    }
    EXPECT_EQ(last, c.kept - 1) << "top_p " << c.top_p;
  }
}

TEST(Sampler, NeverDrawsATokenOfNoProbability) {
  std::vector<float> logits(100, -kInfinity);
  logits[70] = 1;
  logits[30] = 1;
  for (uint64_t i = 0; i < 2000; ++i) {
    const int32_t token = SampleToken(logits, {.temperature = 2, .seed = 70}, i);
    EXPECT_TRUE(token == 30 || token == 70) << token;
  }
}

TEST(Sampler, LogprobsAreOfTheRawLogitsAndSumToOne) {
  const auto logits = RandomLogits(20, /*seed=*/80);
  Sampler sampler;
  const SamplingParams params{.temperature = 0.5f, .top_k = 2, .logit_bias = {{4, 50.f}}, .seed = 81};
  const auto sampled = sampler.Sample(logits, params, {}, 0, {.top = 20});
  ASSERT_TRUE(sampled.ok());
  ASSERT_EQ(sampled->top.size(), 20u);
  double sum = 0;
  for (size_t i = 0; i < 20; ++i) {
    sum += std::exp(double{sampled->top[i].logprob});
    if (i > 0) {
      EXPECT_GE(sampled->top[i - 1].logprob, sampled->top[i].logprob);
    }
    if (sampled->top[i].token == sampled->token) {
      EXPECT_EQ(sampled->top[i].logprob, sampled->logprob);
    }
  }
  EXPECT_NEAR(sum, 1, 20 * 1e-7);
  EXPECT_EQ(sampled->token, 4);
}

TEST(Sampler, TopAlternativesOfEqualLogitsComeInOrderOfId) {
  Sampler sampler;
  const auto scored = sampler.Score(std::vector<float>{1, 3, 3, 1, 3}, 0, {.top = 4});
  ASSERT_TRUE(scored.ok());
  std::vector<int32_t> tokens;
  for (const TokenLogprob& each : scored->top) tokens.push_back(each.token);
  EXPECT_EQ(tokens, (std::vector<int32_t>{1, 2, 4, 0}));
}

TEST(Sampler, ScoreIsTheLogSoftmax) {
  Sampler sampler;
  const auto scored = sampler.Score(std::vector<float>{0, 0, 0, 0}, 2, {});
  ASSERT_TRUE(scored.ok());
  EXPECT_EQ(scored->token, 2);
  EXPECT_FLOAT_EQ(scored->logprob, -std::log(4.0f));
  EXPECT_TRUE(scored->top.empty());
}

// With X the range of the logits and u = 2^-24, a weight has a relative error of (6 + 2 X) u and their sum
// one of (75 + 2 X) u (kernels/sample/softmax_weights_test.cc). Every part of the entropy is a sum of terms
// of one sign that is at most H, or ln W, which is at most H too; the last u is the result's own rounding.
TEST(Sampler, SignalsAreThoseOfTheDefinition) {
  for (const OpTable& ops : AllCpuOps()) {
    for (const size_t count : {2, 15, 16, 1000, 40'000}) {
      for (const double spread : {0.01, 6.0, 60.0}) {
        SCOPED_TRACE(testing::Message() << ops.name << ", " << count << " logits over " << spread);
        const auto logits = RandomLogits(count, /*seed=*/count, spread);
        std::vector<double> falling(logits.begin(), logits.end());
        std::sort(falling.begin(), falling.end(), std::greater());
        double sum = 0, entropy = 0;
        for (const double logit : falling) sum += std::exp(logit - falling[0]);
        for (const double logit : falling) {
          const double logprob = logit - falling[0] - std::log(sum);
          entropy -= std::exp(logprob) * logprob;
        }
        Sampler sampler(ops);
        const auto scored = sampler.Score(logits, 0, {.signals = true});
        ASSERT_TRUE(scored.ok());
        EXPECT_EQ(scored->margin, static_cast<float>(falling[0] - falling[1]));
        EXPECT_NEAR(scored->entropy, entropy, (82 + 4 * spread) * 0x1p-24 * (1 + entropy));
      }
    }
  }
}

TEST(Sampler, SignalsOfOneTokenOfAllAndOfTheFirstTwo) {
  const struct {
    const char* name;
    std::vector<float> logits;
    float margin;
    double entropy;
  } cases[] = {
      {"one token", {2}, kInfinity, 0},
      {"one that is possible", {-kInfinity, 3, -kInfinity}, kInfinity, 0},
      {"one that is certain", {1000, -1000, 0}, 1000, 0},
      {"all alike", std::vector<float>(1000, 5.f), 0, std::log(1000.0)},
      {"two alike", {-kInfinity, 4, 4, -1e30f}, 0, std::log(2.0)},
      {"the second after the first", {1, 2.5f, 2}, 0.5f, 0.9528},
      {"the second before the first", {2, 1, 2.5f}, 0.5f, 0.9528},
  };
  for (const auto& c : cases) {
    Sampler sampler;
    const auto scored = sampler.Score(c.logits, 0, {.signals = true});
    ASSERT_TRUE(scored.ok()) << c.name;
    EXPECT_EQ(scored->margin, c.margin) << c.name;
    EXPECT_NEAR(scored->entropy, c.entropy, 1e-4) << c.name;
    EXPECT_GE(scored->entropy, 0) << c.name;
  }
}

TEST(Sampler, SignalsAreOfTheRawLogitsAndChangeNothingElse) {
  const auto logits = RandomLogits(500, /*seed=*/90);
  TokenCounts counts;
  for (int32_t token = 0; token < 50; ++token) counts.AddGenerated(token);
  const SamplingParams all[] = {
      {.temperature = 0},
      {.seed = 91},
      {.temperature = 0.6f, .top_k = 20, .repetition_penalty = 1.4f, .logit_bias = {{7, 9.f}}, .seed = 92}};
  Sampler sampler;
  const SampledToken want = *sampler.Score(logits, 0, {.signals = true});
  for (const SamplingParams& params : all) {
    for (uint64_t i = 0; i < 20; ++i) {
      const SampledToken without = *sampler.Sample(logits, params, counts, i, {.top = 2});
      const SampledToken with = *sampler.Sample(logits, params, counts, i, {.top = 2, .signals = true});
      EXPECT_EQ(with.token, without.token);
      EXPECT_EQ(with.logprob, without.logprob);
      ASSERT_EQ(with.top.size(), 2u);
      for (size_t rank = 0; rank < 2; ++rank) {
        EXPECT_EQ(with.top[rank].token, without.top[rank].token);
        EXPECT_EQ(with.top[rank].logprob, without.top[rank].logprob);
      }
      EXPECT_EQ(with.margin, want.margin);
      EXPECT_EQ(with.entropy, want.entropy);
      EXPECT_EQ(without.margin, 0);
      EXPECT_EQ(without.entropy, 0);
    }
  }
}

TEST(Sampler, BrokenLogitsAreAnErrorAndNoToken) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> broken[] = {{1, nan, 2}, {nan, nan}, {-kInfinity, -kInfinity}, {1, kInfinity}};
  for (const auto& logits : broken) {
    Sampler sampler;
    for (const float temperature : {0.0f, 1.0f}) {
      const auto sampled =
          sampler.Sample(logits, {.temperature = temperature}, {}, 0, {.signals = temperature > 0});
      ASSERT_FALSE(sampled.ok());
      EXPECT_EQ(sampled.status().code(), StatusCode::kInternal);
      EXPECT_EQ(Reason(sampled.status()), "numeric_error");
    }
    EXPECT_EQ(Reason(sampler.Score(logits, 0, {}).status()), "numeric_error");
  }
}

}  // namespace
}  // namespace terrace
