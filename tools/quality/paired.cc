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

// sum over i = 0 .. count of the product over j = 1 .. i of (count + 1 - j) / (first + j) x. The terms fall
// faster and faster, once they do.
double RatioSum(double count, double first, double x) {
  double sum = 1, term = 1;
  for (double j = 1; j <= count && term > 1e-18 * sum; ++j) {
    term *= (count + 1 - j) / (first + j) * x;
    sum += term;
  }
  return sum;
}

// The largest probability of so few lost rows and, more than 0, so many gained ones, L <= l and G >= k of n,
// of all candidates that are worse by the margin m or more.
//
// A row is gained with probability g, lost with q >= g + m, and else neither. A row that is lost instead
// makes that less likely, so q = g + m and r = 1 - m - 2 g is for neither, with g in [0, (1 - m) / 2]. With
// P' of n - 1 rows, to which the last one may add,
//   f'(g) / n = P'(G >= k - 1, L <= l) + P'(G >= k, L <= l - 1) - 2 P'(G >= k, L <= l)
//             = P'(G = k - 1, L <= l) - P'(G >= k, L = l).
// Divided by P'(G = k - 1, L = l), with o = n - k - l rows that are neither, the first is
// RatioSum(l, o, r / q), which falls in g, and the second RatioSum(o, k - 1, g / r) - 1, which grows from 0.
// So f rises to the one g where they are equal and falls behind it; for o = 0 it rises to its end.
double LargestChance(uint64_t n, uint64_t k, uint64_t l, double m) {
  const auto rows = static_cast<double>(n), lost = static_cast<double>(l),
             neither = static_cast<double>(n - k - l);
  double low = 0, g = (1 - m) / 2;
  for (int i = 0; neither > 0 && i < kHalvings; ++i) {
    const double middle = low + (g - low) / 2, r = 1 - m - 2 * middle;
    const double fewer = RatioSum(lost, neither, r / (middle + m)),
                 more = RatioSum(neither, static_cast<double>(k) - 1, middle / r) - 1;
    (more < fewer ? low : g) = middle;
  }
  const double q = g + m, r = neither > 0 ? 1 - m - 2 * g : 0;
  double sum = 0, log_lost = rows * std::log1p(-q);  // ln P(L = 0)
  for (uint64_t b = 0; b <= l; ++b) {                // P(L = b + 1) = P(L = b) (n - b) / (b + 1) q / (1 - q)
    sum += std::exp(log_lost + LogBinomialTail(n - b - k, n - b, r / (g + r)));  // of those that are neither
    log_lost += std::log((rows - static_cast<double>(b)) / static_cast<double>(b + 1) * q / (1 - q));
  }
  return std::min(1.0, sum);
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
  // The score is farthest from normal where one of the three counts is small. A loss of `margin` at least
  // makes so few lost rows no likelier than one of just that.
  const double exact_p = counts.gained == 0
                             ? std::exp(LogBinomialTail(counts.lost, counts.rows(), margin))
                             : LargestChance(counts.rows(), counts.gained, counts.lost, margin);
  return std::max(score_p, exact_p);
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
