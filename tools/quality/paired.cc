#include "tools/quality/paired.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/binomial.h"
#include "base/status.h"

namespace terrace {
namespace {

constexpr int kHalvings = 60;  // of an interval of at most 2, to less than a double tells apart

// P(Z > z) of a standard normal Z.
double NormalTail(double z) { return std::erfc(z / std::sqrt(2.0)) / 2; }

// The z with that tail.
double NormalQuantile(double tail) {
  CHECK(tail > 0 && tail < 1, tail);
  double low = -40, high = 40;
  for (int i = 0; i < 2 * kHalvings; ++i) {
    const double middle = low + (high - low) / 2;
    (NormalTail(middle) > tail ? low : high) = middle;
  }
  return low;
}

// Of a lost row, when the difference is `d`: the larger root of Tango's quadratic.
double LikeliestLoss(double n, double gained, double lost, double d) {
  const double a = 2 * n, b = (2 * n - gained + lost) * d - gained - lost, c = -lost * d * (1 - d);
  const double root = std::sqrt(std::max(0.0, b * b - 4 * a * c));
  return std::max({0.0, -d, (root - b) / (2 * a)});
}

double Rate(uint64_t part, uint64_t rows) {
  return rows == 0 ? 0 : static_cast<double>(part) / static_cast<double>(rows);
}

}  // namespace

void PairedCounts::Add(bool is_candidate_right, bool is_baseline_right) {
  if (is_candidate_right) {
    ++(is_baseline_right ? both : gained);
  } else {
    ++(is_baseline_right ? lost : neither);
  }
}

double PairedCounts::candidate_rate() const { return Rate(both + gained, rows()); }
double PairedCounts::baseline_rate() const { return Rate(both + lost, rows()); }
double PairedCounts::difference() const { return Rate(gained, rows()) - Rate(lost, rows()); }

double TangoScore(const PairedCounts& counts, double difference) {
  CHECK(difference > -1 && difference < 1, difference);
  const auto n = static_cast<double>(counts.rows()), gained = static_cast<double>(counts.gained),
             lost = static_cast<double>(counts.lost);
  const double excess = gained - lost - n * difference;
  if (excess == 0) return 0;
  const double loss = LikeliestLoss(n, gained, lost, difference);
  const double variance = n * (2 * loss + difference * (1 - difference));
  if (variance <= 0) return std::copysign(std::numeric_limits<double>::infinity(), excess);
  return excess / std::sqrt(variance);
}

Interval TangoInterval(const PairedCounts& counts, double confidence) {
  CHECK(confidence > 0 && confidence < 1, confidence);
  if (counts.rows() == 0) return {};
  const double z = NormalQuantile((1 - confidence) / 2), estimate = counts.difference();
  // The score falls in the difference: find where it is z, below the estimate, and -z, above.
  Interval out{.low = estimate, .high = estimate};
  double outside = -1;
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = outside + (out.low - outside) / 2;
    (middle > -1 && TangoScore(counts, middle) <= z ? out.low : outside) = middle;
  }
  outside = 1;
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = outside + (out.high - outside) / 2;
    (middle < 1 && TangoScore(counts, middle) >= -z ? out.high : outside) = middle;
  }
  return out;
}

double NonInferiorityPValue(const PairedCounts& counts, double margin) {
  CHECK(margin > 0 && margin < 1, margin);
  if (counts.rows() == 0) return 1;
  const double score_p = NormalTail(TangoScore(counts, -margin));
  if (counts.gained > 0) return score_p;
  // The score is farthest from normal here; a loss of `margin` at least makes so few lost rows no likelier.
  return std::max(score_p, std::exp(LogBinomialTail(counts.lost, counts.rows(), margin)));
}

double McNemarPValue(const PairedCounts& counts) {
  const uint64_t fewer = std::min(counts.gained, counts.lost);
  return std::min(1.0, 2 * std::exp(LogBinomialTail(fewer, counts.gained + counts.lost, 0.5)));
}

std::vector<double> HolmAdjusted(std::span<const double> p_values) {
  std::vector<size_t> order(p_values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, {}, [&](size_t i) { return p_values[i]; });
  std::vector<double> adjusted(p_values.size());
  double largest = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    const double factor = static_cast<double>(order.size() - rank);
    largest = std::max(largest, std::min(1.0, factor * p_values[order[rank]]));
    adjusted[order[rank]] = largest;
  }
  return adjusted;
}

// The score of a difference of -margin is then sqrt(n margin / (1 - margin)), and the exact tail
// (1 - margin)^n.
uint64_t LeastRows(double margin, double level) {
  constexpr double kMost = 1e18;
  const double z = std::max(0.0, NormalQuantile(level));
  const double rows = std::max(z * z * (1 - margin) / margin, std::log(level) / std::log1p(-margin));
  return static_cast<uint64_t>(std::min(kMost, std::ceil(rows)));
}

const char* ComparisonVerdictName(ComparisonVerdict verdict) {
  switch (verdict) {
    case ComparisonVerdict::kNonInferior:
      return "non-inferior";
    case ComparisonVerdict::kInferior:
      return "inferior";
    case ComparisonVerdict::kUndecided:
      return "undecided";
  }
  return "";
}

std::vector<PairedComparison> ComparePaired(std::span<const NamedCounts> tasks,
                                            const ComparisonOptions& options) {
  std::vector<double> p_values;
  for (const NamedCounts& task : tasks) p_values.push_back(NonInferiorityPValue(task.counts, options.margin));
  const std::vector<double> adjusted = HolmAdjusted(p_values);
  std::vector<PairedComparison> out;
  for (size_t i = 0; i < tasks.size(); ++i) {
    PairedComparison& task = out.emplace_back(PairedComparison{
        .name = tasks[i].name,
        .counts = tasks[i].counts,
        .interval = TangoInterval(tasks[i].counts, 1 - 2 * options.level),
        .mcnemar_p = McNemarPValue(tasks[i].counts),
        .p_value = p_values[i],
        .adjusted_p = adjusted[i],
    });
    if (task.adjusted_p <= options.level) {
      task.verdict = ComparisonVerdict::kNonInferior;
    } else if (task.interval.high < -options.margin) {
      task.verdict = ComparisonVerdict::kInferior;
    }
  }
  return out;
}

}  // namespace terrace
