#include "tools/quality/paired.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/rng.h"
#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;

constexpr double kLevel = 0.05, kZ = 1.6448536269514722;  // P(Z > kZ) = kLevel

PairedCounts Counts(uint64_t rows, uint64_t gained, uint64_t lost) {
  return {.both = rows - gained - lost, .gained = gained, .lost = lost};
}

double PowerTerm(uint64_t k, double p) { return k == 0 ? 0 : static_cast<double>(k) * std::log(p); }

// ln of the probability of the counts, but for a constant of the counts.
double LogLikelihood(const PairedCounts& counts, double gain, double loss) {
  return PowerTerm(counts.gained, gain) + PowerTerm(counts.lost, loss) +
         PowerTerm(counts.both + counts.neither, 1 - gain - loss);
}

// Calls visit(counts, probability) for everything `rows` draws may give.
void EachOutcome(uint64_t rows, double gain, double loss,
                 const std::function<void(const PairedCounts&, double)>& visit) {
  const auto log_factorial = [](uint64_t n) { return std::lgamma(static_cast<double>(n) + 1); };
  for (uint64_t gained = 0; gained <= rows; ++gained) {
    for (uint64_t lost = 0; gained + lost <= rows; ++lost) {
      if ((gain == 0 && gained > 0) || (loss == 0 && lost > 0)) continue;
      const PairedCounts counts = Counts(rows, gained, lost);
      visit(counts, std::exp(log_factorial(rows) - log_factorial(gained) - log_factorial(lost) -
                             log_factorial(counts.both) + LogLikelihood(counts, gain, loss)));
    }
  }
}

TEST(PairedCounts, TellWhoWasRight) {
  PairedCounts counts;
  counts.Add(true, true);
  counts.Add(true, false);
  counts.Add(false, true);
  counts.Add(false, true);
  counts.Add(false, false);
  EXPECT_EQ(counts.rows(), 5u);
  EXPECT_DOUBLE_EQ(counts.candidate_rate(), 0.4);
  EXPECT_DOUBLE_EQ(counts.baseline_rate(), 0.6);
  EXPECT_DOUBLE_EQ(counts.difference(), -0.2);
  EXPECT_EQ(PairedCounts().difference(), 0);
}

TEST(McNemar, IsTheSumOfAllOutcomesAsFarApart) {
  for (uint64_t gained = 0; gained <= 9; ++gained) {
    for (uint64_t lost = 0; lost <= 9; ++lost) {
      const auto distance = [](uint64_t a, uint64_t b) { return a > b ? a - b : b - a; };
      double sum = 0, ways = 1;  // of `k` gained rows among those that differ
      const uint64_t differ = gained + lost;
      for (uint64_t k = 0; k <= differ; ++k) {
        if (distance(k, differ - k) >= distance(gained, lost)) sum += ways * std::pow(0.5, differ);
        ways = ways * static_cast<double>(differ - k) / static_cast<double>(k + 1);
      }
      EXPECT_NEAR(McNemarPValue(Counts(30, gained, lost)), sum, 1e-12) << gained << " " << lost;
    }
  }
}

// The definition, with the likeliest loss found by search.
TEST(Tango, TheScoreIsTheExcessOverItsStandardDeviationUnderTheHypothesis) {
  for (const auto& [gained, lost] : {std::pair(0u, 1u), {3u, 0u}, {4u, 7u}, {0u, 0u}, {20u, 19u}}) {
    for (const double d : {-0.3, -0.05, -0.01, 0.02, 0.4}) {
      const PairedCounts counts = Counts(50, gained, lost);
      double low = std::max(0.0, -d), high = (1 - d) / 2;
      for (int i = 0; i < 200; ++i) {  // the likelihood has one top
        const double a = low + (high - low) / 3, b = high - (high - low) / 3;
        const bool is_rising = LogLikelihood(counts, a + d, a) < LogLikelihood(counts, b + d, b);
        (is_rising ? low : high) = is_rising ? a : b;
      }
      const double deviation = std::sqrt(50 * (2 * low + d - d * d));
      EXPECT_NEAR(TangoScore(counts, d), (double{1} * gained - lost - 50 * d) / deviation, 1e-5)
          << gained << " " << lost << " " << d;
    }
  }
}

TEST(Tango, TheIntervalEndsWhereTheScoreIsThatOfTheConfidence) {
  for (const auto& [gained, lost] : {std::pair(0u, 0u), {2u, 5u}, {60u, 10u}, {1u, 0u}}) {
    const PairedCounts counts = Counts(200, gained, lost);
    const Interval interval = TangoInterval(counts, 1 - 2 * kLevel);
    EXPECT_NEAR(TangoScore(counts, interval.low), kZ, 1e-6);
    EXPECT_NEAR(TangoScore(counts, interval.high), -kZ, 1e-6);
    const Interval mirrored = TangoInterval(Counts(200, lost, gained), 1 - 2 * kLevel);
    EXPECT_NEAR(mirrored.low, -interval.high, 1e-12);
    EXPECT_NEAR(mirrored.high, -interval.low, 1e-12);
  }
  EXPECT_EQ(TangoInterval(Counts(10, 10, 0), 0.9).high, 1);
  EXPECT_EQ(TangoInterval(Counts(10, 0, 10), 0.9).low, -1);
  EXPECT_EQ(TangoInterval({}, 0.9).low, -1);
}

// Computed apart, by another program.
TEST(Tango, IsAsComputedElsewhere) {
  const Interval wide = TangoInterval(Counts(50, 12, 2), 0.95);
  EXPECT_NEAR(wide.low, 0.06111241, 1e-7);
  EXPECT_NEAR(wide.high, 0.34470875, 1e-7);
  EXPECT_NEAR(TangoInterval(Counts(200, 0, 0), 0.9).high, 0.01334716, 1e-7);
}

// Enumerated: all outcomes of candidates that are worse by just the margin.
TEST(NonInferiority, IsHardlyEverShownOfWhatIsWorseByTheMargin) {
  const std::pair<uint64_t, double> cases[] = {{40, 0.1}, {100, 0.05}};
  for (const auto& [rows, margin] : cases) {
    for (const double gain : {0.0, 0.01, 0.05, 0.1, 0.2}) {
      double wrong = 0, all = 0;
      EachOutcome(rows, gain, gain + margin, [&, margin = margin](const PairedCounts& counts, double p) {
        all += p;
        if (NonInferiorityPValue(counts, margin) <= kLevel) wrong += p;
      });
      EXPECT_NEAR(all, 1, 1e-9);
      EXPECT_LE(wrong, (gain == 0 ? 1 : 1.1) * kLevel)
          << rows << " rows, margin " << margin << ", gain " << gain;
    }
  }
}

// Enumerated: the largest size of the test, whatever is gained, of few rows.
TEST(NonInferiority, OfFewRowsIsShownHardlyMoreOftenThanTheLevelSays) {
  constexpr int kGains = 60;
  for (const double margin : {0.01, 0.05, 0.1, 0.3}) {
    for (uint64_t rows = 1; rows <= 40; rows += rows < 20 ? 1 : 5) {
      std::vector<std::vector<bool>> shows(rows + 1, std::vector<bool>(rows + 1));  // [gained][lost]
      bool takes_no_loss = true;
      for (uint64_t gained = 0; gained <= rows; ++gained) {
        for (uint64_t lost = 0; gained + lost <= rows; ++lost) {
          shows[gained][lost] = NonInferiorityPValue(Counts(rows, gained, lost), margin) <= kLevel;
          takes_no_loss &= lost == 0 || !shows[gained][lost];
        }
      }
      double most = 0;
      for (int i = 0; i <= kGains; ++i) {
        const double gain = std::min((1 - margin) / 2 * i / kGains, (1 - margin) / 2 - 1e-9);
        double shown = 0;
        EachOutcome(rows, gain, gain + margin, [&](const PairedCounts& counts, double p) {
          if (shows[counts.gained][counts.lost]) shown += p;
        });
        most = std::max(most, shown);
      }
      EXPECT_LE(most, (takes_no_loss ? 1 : 1.26) * kLevel) << rows << " rows, margin " << margin;
    }
  }
}

// The exact part, against a search over what is gained.
TEST(NonInferiority, IsAtLeastTheLargestChanceOfSoFewLostAndSoManyGained) {
  for (const double margin : {0.01, 0.05, 0.4}) {
    for (const uint64_t rows : {1u, 3u, 8u, 21u}) {
      for (uint64_t gained = 0; gained <= rows; ++gained) {
        for (uint64_t lost = 0; gained + lost <= rows; lost += 1 + lost) {
          double most = 0;
          for (const double share :
               {0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999999}) {
            const double gain = (1 - margin) / 2 * share;
            double chance = 0;
            EachOutcome(rows, gain, gain + margin, [&](const PairedCounts& counts, double p) {
              if (counts.lost <= lost && counts.gained >= gained) chance += p;
            });
            most = std::max(most, chance);
          }
          EXPECT_GE(NonInferiorityPValue(Counts(rows, gained, lost), margin), most * (1 - 1e-9))
              << gained << " gained, " << lost << " lost of " << rows << ", margin " << margin;
        }
      }
    }
  }
}

TEST(NonInferiority, OfThreeRowsIsNotShown) {  // two gained and none lost were once enough
  for (uint64_t gained = 0; gained <= 3; ++gained)
    EXPECT_GT(NonInferiorityPValue(Counts(3, gained, 0), 0.05), kLevel) << gained;
  // As likely as that can be where each row is gained or lost.
  EXPECT_NEAR(NonInferiorityPValue(Counts(3, 3, 0), 0.05), 0.475 * 0.475 * 0.475, 1e-12);
}

TEST(NonInferiority, OfManyRowsIsThatOfTheScore) {
  EXPECT_LT(NonInferiorityPValue(Counts(14'000, 700, 700), 0.01), 1e-3);
  EXPECT_GT(NonInferiorityPValue(Counts(14'000, 700, 900), 0.01), kLevel);
}

TEST(NonInferiority, IsShownWhenTheIntervalIsAboveTheMargin) {
  for (uint64_t lost = 0; lost <= 20; ++lost) {
    const PairedCounts counts = Counts(200, 1, lost);
    EXPECT_EQ(NonInferiorityPValue(counts, 0.05) <= kLevel,
              TangoInterval(counts, 1 - 2 * kLevel).low >= -0.05)
        << lost;
  }
}

TEST(Tango, TheIntervalCoversTheTrueDifferenceAsOftenAsItSays) {
  constexpr uint64_t kSeed = 20261130, kRows = 200, kDraws = 1000;
  SCOPED_TRACE(Concat("seed ", kSeed));
  const std::pair<double, double> truths[] = {{0.01, 0.02}, {0.05, 0.05}, {0.02, 0.1}, {0.2, 0.25}};
  uint64_t draw = 0;
  for (const auto& [gain, loss] : truths) {
    double covered = 0;
    for (uint64_t i = 0; i < kDraws; ++i) {
      PairedCounts counts;
      for (uint64_t row = 0; row < kRows; ++row) {
        const double u = RandomUniform(kSeed, draw++);
        counts.Add(u >= loss, u < loss || u >= loss + gain);
      }
      const Interval interval = TangoInterval(counts, 0.9);
      covered += interval.low <= gain - loss && gain - loss <= interval.high;
    }
    // 0.9, less three standard deviations of such a count and a little.
    EXPECT_GE(covered / kDraws, 0.865) << gain << " " << loss;
  }
}

TEST(Holm, IsThatOfTheTextbooks) {
  EXPECT_THAT(HolmAdjusted(std::vector{0.01, 0.04, 0.03, 0.005}),
              ElementsAre(DoubleNear(0.03, 1e-12), DoubleNear(0.06, 1e-12), DoubleNear(0.06, 1e-12),
                          DoubleNear(0.02, 1e-12)));
  EXPECT_THAT(HolmAdjusted(std::vector{0.9, 0.8}), ElementsAre(1, 1));
  EXPECT_THAT(HolmAdjusted({}), ElementsAre());
}

TEST(LeastRows, AreThoseThatShowTheMarginWhenNoRowDiffers) {
  for (const double margin : {0.01, 0.05, 0.2}) {
    const uint64_t rows = LeastRows(margin, kLevel);
    EXPECT_LE(NonInferiorityPValue(Counts(rows, 0, 0), margin), kLevel);
    EXPECT_GT(NonInferiorityPValue(Counts(rows - 1, 0, 0), margin), kLevel);
  }
  EXPECT_EQ(LeastRows(0.05, kLevel), 59u);
  EXPECT_EQ(LeastRows(1e-300, kLevel), uint64_t{1'000'000'000'000'000'000});
}

TEST(ComparePaired, TellsWhatIsShown) {
  const std::vector<NamedCounts> tasks = {
      {"same", Counts(200, 1, 1)}, {"worse", Counts(200, 0, 40)}, {"few", Counts(10, 0, 0)}, {"none", {}}};
  const auto verdicts = ComparePaired(tasks, {.margin = 0.05, .level = kLevel});
  ASSERT_EQ(verdicts.size(), 4u);
  EXPECT_EQ(verdicts[0].verdict, ComparisonVerdict::kNonInferior);
  EXPECT_EQ(verdicts[1].verdict, ComparisonVerdict::kInferior);
  EXPECT_EQ(verdicts[2].verdict, ComparisonVerdict::kUndecided);
  EXPECT_EQ(verdicts[3].verdict, ComparisonVerdict::kUndecided);
  EXPECT_NEAR(verdicts[0].adjusted_p, 4 * verdicts[0].p_value, 1e-12) << "it is the least of four";
}

TEST(ComparePaired, MoreTasksMakeEachHarderToShow) {
  const NamedCounts task = {"task", Counts(60, 0, 0)};
  const ComparisonOptions options = {.margin = 0.05, .level = kLevel};
  EXPECT_EQ(ComparePaired(std::vector{task}, options)[0].verdict, ComparisonVerdict::kNonInferior);
  for (const PairedComparison& each : ComparePaired(std::vector(6, task), options))
    EXPECT_EQ(each.verdict, ComparisonVerdict::kUndecided);
}

}  // namespace
}  // namespace terrace
