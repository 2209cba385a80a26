#include "tools/calibrate/risk.h"

#include <cmath>
#include <optional>
#include <vector>

#include "base/binomial.h"
#include "base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::ElementsAre;

TEST(RiskPValue, IsAtMostDeltaJustWhenTheUpperBoundIsAtMostEpsilon) {
  for (const double delta : {0.01, 0.1, 0.3}) {
    for (const double epsilon : {0.01, 0.05, 0.2}) {
      for (const uint64_t rows : {1u, 20u, 150u}) {
        for (uint64_t losses = 0; losses <= rows; ++losses) {
          const double bound = UpperRateBound(losses, rows, delta);
          if (std::abs(bound - epsilon) < 1e-9) continue;
          EXPECT_EQ(RiskPValue(losses, rows, epsilon) <= delta, bound <= epsilon)
              << losses << " of " << rows << ", epsilon " << epsilon << ", delta " << delta;
        }
      }
    }
  }
}

TEST(FixedSequenceTest, RejectsFromEachStartUntilTheFirstThatIsNotBelowItsLevel) {
  const std::vector<double> p = {0.01, 0.04, 0.2, 0.01, 0.05, 0.06};
  EXPECT_THAT(FixedSequenceTest(p, 0.1, 1), ElementsAre(true, true, false, false, false, false));
  EXPECT_THAT(FixedSequenceTest(p, 0.1, 2), ElementsAre(true, true, false, true, true, false));
  EXPECT_THAT(FixedSequenceTest(p, 0.01, 1), ElementsAre(true, false, false, false, false, false));
  EXPECT_THAT(FixedSequenceTest(p, 0.01, 2), ElementsAre(false, false, false, false, false, false));
  EXPECT_THAT(FixedSequenceTest({}, 0.1, 3), ElementsAre());
}

// A population whose answers are accepted above a threshold t of a score that is uniform in [0, 1); one of
// score s is then a loss with probability 0.4 (1 - s). So the rate of losses is the integral from t to 1.
double TrueRate(double threshold) { return 0.2 * (1 - threshold) * (1 - threshold); }

constexpr int kThresholds = 40;
double ThresholdAt(int i) { return 1 - static_cast<double>(i + 1) / kThresholds; }  // the safest first

std::vector<uint64_t> DrawLosses(uint64_t rows, uint64_t seed) {  // [kThresholds]
  std::vector<uint64_t> losses(kThresholds);
  for (uint64_t row = 0; row < rows; ++row) {
    const double score = RandomUniform(seed, 2 * row);
    const bool is_lost_if_accepted = RandomUniform(seed, 2 * row + 1) < 0.4 * (1 - score);
    for (int i = 0; i < kThresholds; ++i) losses[i] += is_lost_if_accepted && score > ThresholdAt(i);
  }
  return losses;
}

// The least threshold that passes, as it is the cheapest.
std::optional<double> Chosen(const std::vector<uint64_t>& losses, uint64_t rows, const RiskLimit& limit) {
  std::vector<double> p_values;
  for (const uint64_t each : losses) p_values.push_back(RiskPValue(each, rows, limit.epsilon));
  const std::vector<bool> is_safe = FixedSequenceTest(p_values, limit.delta, limit.starts);
  std::optional<double> chosen;
  for (int i = 0; i < kThresholds; ++i) {
    if (is_safe[i]) chosen = ThresholdAt(i);
  }
  return chosen;
}

TEST(LearnThenTest, TheTrueRateExceedsEpsilonInAtMostDeltaOfAllRuns) {
  constexpr int kRuns = 200;
  constexpr uint64_t kRows = 300;
  for (const RiskLimit& limit :
       {RiskLimit{.epsilon = 0.05, .delta = 0.1}, RiskLimit{.epsilon = 0.05, .delta = 0.1, .starts = 4},
        RiskLimit{.epsilon = 0.1, .delta = 0.05}}) {
    SCOPED_TRACE(testing::Message() << "epsilon " << limit.epsilon << ", delta " << limit.delta << ", starts "
                                    << limit.starts << ", seeds 0 to " << kRuns - 1);
    uint64_t exceeded = 0, naively_exceeded = 0, passed = 0;
    for (uint64_t seed = 0; seed < kRuns; ++seed) {
      const std::vector<uint64_t> losses = DrawLosses(kRows, seed);
      const std::optional<double> chosen = Chosen(losses, kRows, limit);
      passed += chosen.has_value();
      exceeded += chosen.has_value() && TrueRate(*chosen) > limit.epsilon;
      double naive = 1;  // the least threshold whose rate on the rows is at most epsilon
      for (int i = 0; i < kThresholds; ++i) {
        if (static_cast<double>(losses[i]) <= limit.epsilon * kRows) naive = ThresholdAt(i);
      }
      naively_exceeded += TrueRate(naive) > limit.epsilon;
    }
    // If each run exceeds with probability delta, more than `most` of them do in one of a million tests.
    uint64_t most = 0;
    while (LogBinomialTail(most, kRuns, limit.delta) < std::log1p(-1e-6)) ++most;
    EXPECT_LE(exceeded, most);
    EXPECT_GT(naively_exceeded, most) << "the population is too easy to tell";
    EXPECT_EQ(passed, static_cast<uint64_t>(kRuns)) << "a guarantee that never lets anything pass is no use";
  }
}

}  // namespace
}  // namespace terrace
