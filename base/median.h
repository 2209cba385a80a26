// The middle of a list of numbers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "base/status.h"

namespace terrace {

// Of an even number of values the larger of the two in the middle. `values` are not empty (CHECK).
inline double Median(std::vector<double> values) {
  CHECK(!values.empty(), "the median of nothing");
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

}  // namespace terrace
