// SiLU(gate) * up in double, and what f32 may differ from it: for its tests on the emulator and on a GPU.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/scalar_convert.h"

namespace terrace {

// Of one row of GpuSiluMulArgs::in.
inline std::vector<double> SiluMulRef(const uint16_t* in, size_t width) {
  std::vector<double> out(width);
  for (size_t i = 0; i < width; ++i) {
    const size_t at = 16 * (i / 8) + i % 8;
    const double gate = FloatFromBF16(in[at]), up = FloatFromBF16(in[at + 8]);
    out[i] = gate / (1 + std::exp(-gate)) * up;
  }
  return out;
}

// Tests keep to |gate|, |up| <= kSiluMulMost. Relative error: the exponent is rounded to 2^-24 of up to 1.5
// |gate|; 2 ulp each of exp2 and the reciprocal, and four operations.
inline constexpr float kSiluMulMost = 90;
inline constexpr double kSiluMulError = (1.5 * kSiluMulMost + 12) * 0x1p-24;

// A gate below -88 gives 0 instead of less than 1e-36 times up.
inline void ExpectSiluMulRow(const std::vector<double>& want, const uint16_t* got) {
  for (size_t i = 0; i < want.size(); ++i) {
    const double error =
        std::abs(want[i]) * (0x1.01p-8 + kSiluMulError) + 1e-36 * kSiluMulMost;  // bf16 has 8 bits
    ASSERT_NEAR(FloatFromBF16(got[i]), want[i], error) << "column " << i;
  }
}

}  // namespace terrace
