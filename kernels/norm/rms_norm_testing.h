// RMSNorm in double, and what f32 may differ from it: for its tests on the emulator and on a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/quant/e4m3_testing.h"
#include "kernels/scalar_convert.h"

namespace terrace {

inline std::vector<double> RmsNormRef(const float* x, const std::vector<float>& weight, double epsilon) {
  double squares = 0;
  for (size_t i = 0; i < weight.size(); ++i) squares += double{x[i]} * x[i];
  const double root = std::sqrt(squares / static_cast<double>(weight.size()) + epsilon);
  std::vector<double> out(weight.size());
  for (size_t i = 0; i < out.size(); ++i) out[i] = x[i] / root * weight[i];
  return out;
}

// A sum of squares passes at most 128 additions in one thread and 10 among them, each of which rounds by
// 2^-24, and so do half a dozen operations behind it; the root halves what is before it.
inline constexpr double kRmsNormError = 80 * 0x1p-24;

inline void ExpectRmsNormRow(const std::vector<double>& want, const uint16_t* got) {
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(want[i]) * (0x1.01p-8 + kRmsNormError) + 0x1p-133;  // bf16 has 8 bits
    ASSERT_NEAR(FloatFromBF16(got[i]), want[i], error) << "column " << i;
  }
}

}  // namespace terrace
