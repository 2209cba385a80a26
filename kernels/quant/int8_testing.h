// What the tests of kernels that write int8 rows share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {

// A row that says `want`, of which the kernel knew each value to a relative error of `known`: the scale is
// the largest / 127, and a code is off by half of it.
inline void ExpectInt8Row(const std::vector<double>& want, const int8_t* codes, float scale, double known) {
  double largest = 0;
  for (const double value : want) largest = std::max(largest, std::abs(value));
  ASSERT_NEAR(scale, largest / 127, largest / 127 * (known + 0x1p-23));
  int largest_code = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    largest_code = std::max(largest_code, std::abs(int{codes[i]}));
    ASSERT_NEAR(double{scale} * codes[i], want[i],
                scale * 0.5 * (1 + 0x1p-15) + std::abs(want[i]) * 2 * (known + 0x1p-22))
        << "column " << i;
  }
  if (largest > 0) {
    ASSERT_EQ(largest_code, 127);
  }
}

}  // namespace terrace
