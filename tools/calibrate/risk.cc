#include "tools/calibrate/risk.h"

#include <cmath>

#include "base/binomial.h"
#include "base/status.h"

namespace terrace {

double RiskPValue(uint64_t losses, uint64_t rows, double epsilon) {
  return std::exp(LogBinomialTail(losses, rows, epsilon));
}

std::vector<bool> FixedSequenceTest(std::span<const double> p_values, double delta, size_t starts) {
  CHECK(starts > 0);
  const double level = delta / static_cast<double>(starts);
  std::vector<bool> is_rejected(p_values.size());
  for (size_t start = 0; start < starts; ++start) {
    for (size_t i = start * p_values.size() / starts; i < p_values.size() && p_values[i] <= level; ++i)
      is_rejected[i] = true;
  }
  return is_rejected;
}

}  // namespace terrace
