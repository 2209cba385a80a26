// What the tests of kernels that write E4M3 rows share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {

// Of a finite code (OCP, "8-bit Floating Point Specification", 2023).
inline double E4M3Value(uint32_t code) {
  const int exponent = static_cast<int>(code >> 3 & 15), mantissa = static_cast<int>(code & 7);
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

// A row that says `want`, of which the kernel knew each value to a relative error of `known`: the scale is
// the largest / 448, and a code is off by half of the step there, which is at most 1/8 of the value, or 2^-9.
inline void ExpectE4M3Row(const std::vector<double>& want, const uint8_t* codes, float scale, double known) {
  double largest = 0;
  for (const double value : want) largest = std::max(largest, std::abs(value));
  ASSERT_NEAR(scale, largest / 448, largest / 448 * (known + 0x1p-23));
  uint32_t largest_code = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    largest_code = std::max(largest_code, uint32_t{codes[i]} & 0x7f);
    ASSERT_NE(codes[i] & 0x7f, 0x7f) << "column " << i;
    const double half_step = std::max(std::abs(want[i]) / 16, scale * 0x1p-10);
    ASSERT_NEAR(scale * E4M3Value(codes[i]), want[i],
                half_step * (1 + 0x1p-20) + std::abs(want[i]) * 2 * known)
        << "column " << i;
  }
  if (largest > 0) {
    ASSERT_EQ(largest_code, 0x7eu);
  }
}

}  // namespace terrace
