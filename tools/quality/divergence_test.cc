#include "tools/quality/divergence.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/rng.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

std::vector<float> LogitsOf(const std::vector<double>& probabilities, double shift = 0) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p) + shift));
  return logits;
}

TEST(Divergence, IsThatOfTheDefinition) {
  const std::vector<double> p = {0.7, 0.2, 0.1}, q = {0.3, 0.5, 0.2};
  double want = 0;
  for (size_t i = 0; i < p.size(); ++i) want += p[i] * std::log(p[i] / q[i]);
  DivergenceMeter meter;
  ASSERT_TRUE(meter.Add(LogitsOf(q, /*shift=*/40), LogitsOf(p, -3), 2).ok());
  const Divergence got = meter.Finish();
  EXPECT_EQ(got.positions, 1u);
  EXPECT_NEAR(got.mean_kl, want, 1e-5);
  EXPECT_NEAR(got.max_kl, want, 1e-5);
  EXPECT_EQ(got.flip_rate, 1);
  EXPECT_NEAR(got.candidate_perplexity, 1 / 0.2, 1e-4);
  EXPECT_NEAR(got.baseline_perplexity, 1 / 0.1, 1e-4);
}

TEST(Divergence, OfAModelFromItselfIsNothing) {
  constexpr uint64_t kSeed = 5;
  DivergenceMeter meter;
  for (uint64_t position = 0; position < 50; ++position) {
    std::vector<float> logits;
    for (uint64_t i = 0; i < 100; ++i)
      logits.push_back(static_cast<float>(60 * RandomUniform(kSeed, i, position) - 30));
    ASSERT_TRUE(meter.Add(logits, logits, 7).ok());
  }
  const Divergence got = meter.Finish();
  EXPECT_EQ(got.max_kl, 0) << "seed " << kSeed;
  EXPECT_EQ(got.flip_rate, 0);
  EXPECT_EQ(got.candidate_perplexity, got.baseline_perplexity);
}

TEST(Divergence, TheSummaryIsOfAllPositions) {
  DivergenceMeter meter;
  const std::vector<double> even = {0.5, 0.5};
  for (int i = 1; i <= 200; ++i) {
    const double p = 0.5 + 0.002 * i;  // further away with each
    ASSERT_TRUE(meter.Add(LogitsOf({p, 1 - p}), LogitsOf(even), 0).ok());
  }
  const auto kl = [](double p) { return 0.5 * std::log(0.5 / p) + 0.5 * std::log(0.5 / (1 - p)); };
  const Divergence got = meter.Finish();
  EXPECT_EQ(got.positions, 200u);
  EXPECT_NEAR(got.p99_kl, kl(0.5 + 0.002 * 198), 1e-5);
  EXPECT_NEAR(got.max_kl, kl(0.9), 1e-5);
  EXPECT_EQ(got.flip_rate, 0);
  EXPECT_LT(got.candidate_perplexity, got.baseline_perplexity);
  EXPECT_EQ(DivergenceMeter().Finish().candidate_perplexity, 1);
}

TEST(Divergence, LogitsThatAreNotFiniteAreAnError) {
  const std::vector<float> good = {0, 1};
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    DivergenceMeter meter;
    EXPECT_EQ(Reason(meter.Add(std::vector{bad, 1.0f}, good, 0)), "numeric_error");
    EXPECT_EQ(Reason(meter.Add(good, std::vector{1.0f, bad}, 0)), "numeric_error");
    EXPECT_EQ(meter.Finish().positions, 0u);
  }
}

}  // namespace
}  // namespace terrace
