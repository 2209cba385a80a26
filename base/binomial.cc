#include "base/binomial.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/status.h"

namespace terrace {
namespace {

constexpr int kHalvings = 64;  // of an interval in [0, 1], to less than a double tells apart

double LogOfSum(double log_a, double log_b) {
  const double larger = std::max(log_a, log_b);
  return larger + std::log1p(std::exp(std::min(log_a, log_b) - larger));
}

}  // namespace

double LogBinomialTail(uint64_t k, uint64_t n, double p) {
  CHECK(p >= 0 && p <= 1, "p ", p);
  if (k >= n || p == 0) return 0;
  if (p == 1) return -std::numeric_limits<double>::infinity();
  const double log_odds = std::log(p) - std::log1p(-p);
  double term = static_cast<double>(n) * std::log1p(-p);  // ln P(X = 0)
  double sum = term;
  for (uint64_t i = 0; i < k; ++i) {  // P(X = i + 1) = P(X = i) (n - i) / (i + 1) p / (1 - p)
    term += std::log(static_cast<double>(n - i) / static_cast<double>(i + 1)) + log_odds;
    sum = LogOfSum(sum, term);
  }
  return std::min(sum, 0.0);
}

double UpperRateBound(uint64_t losses, uint64_t rows, double delta) {
  CHECK(losses <= rows && delta > 0 && delta < 1, losses, " of ", rows, ", delta ", delta);
  if (losses == rows) return 1;
  double low = static_cast<double>(losses) / static_cast<double>(rows), high = 1;
  for (int i = 0; i < kHalvings; ++i) {  // the tail falls in p: find where it is delta
    const double middle = low + (high - low) / 2;
    (LogBinomialTail(losses, rows, middle) > std::log(delta) ? low : high) = middle;
  }
  return high;
}

double LowerRateBound(uint64_t losses, uint64_t rows, double delta) {
  return rows == 0 ? 0 : 1 - UpperRateBound(rows - losses, rows, delta);
}

}  // namespace terrace
