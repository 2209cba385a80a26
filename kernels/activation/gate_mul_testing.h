// Gate functions in double, and what f32 may differ from them: for their tests on the emulator and on a GPU.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/activation/gate_function.h"
#include "kernels/scalar_convert.h"

namespace terrace {

inline constexpr GateFunction kGateFunctions[] = {GateFunction::kSilu, GateFunction::kGelu};
inline const char* GateFunctionName(GateFunction function) {
  return function == GateFunction::kSilu ? "SiLU" : "GELU";
}

inline double GateRef(GateFunction function, double x) {
  if (function == GateFunction::kSilu) return x / (1 + std::exp(-x));
  return x / (1 + std::exp(-2 * std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}
// By how much it changes for a change of x, at most: 1.0998 near 2.40, 1.1290 near 1.42.
constexpr double GateSlope(GateFunction function) { return function == GateFunction::kSilu ? 1.1 : 1.13; }

// Of one row of GpuGateMulArgs::in.
inline std::vector<double> GateMulRef(GateFunction function, const uint16_t* in, size_t width) {
  std::vector<double> out(width);
  for (size_t i = 0; i < width; ++i) {
    const size_t at = 16 * (i / 8) + i % 8;
    out[i] = GateRef(function, FloatFromBF16(in[at])) * FloatFromBF16(in[at + 8]);
  }
  return out;
}

// Relative error of a device's GateMul: 2^-24 of up to 1.5 |z| by the exponent, or 4 |z| as GELU's z has
// three roundings more; 2 ulp each of exp2 and the reciprocal, and four operations. The exponent counts by 1
// - sigmoid(z): for z above 0 by less than 1 in all, and below -88 the result is 0.
constexpr double GateMulError(GateFunction function) {
  return ((function == GateFunction::kSilu ? 1.5 : 4) * 88 + 12) * 0x1p-24;
}
// Tests keep to |gate|, |up| <= kGateMulMost: with z below -88 there is 0 instead of less than 1e-36 |up|.
inline constexpr float kGateMulMost = 90;

inline void ExpectGateMulRow(GateFunction function, const std::vector<double>& want, const uint16_t* got) {
  for (size_t i = 0; i < want.size(); ++i) {
    const double error =
        std::abs(want[i]) * (0x1.01p-8 + GateMulError(function)) + 1e-36 * kGateMulMost;  // bf16 has 8 bits
    ASSERT_NEAR(FloatFromBF16(got[i]), want[i], error) << "column " << i;
  }
}

// A row of width 16: gates below 0 and above whose exponential, cube or square is beyond f32, of ups that are
// 1.
inline std::vector<uint16_t> FarGates() {
  std::vector<uint16_t> in(2 * 16, BF16FromFloat(1));
  size_t to = 0;
  for (const float size : {200.0f, 1e4f, 1e13f, 1e19f, 2e19f, 1e30f, 2e38f, 3e38f}) {
    in[to] = BF16FromFloat(-size);
    in[16 + to++] = BF16FromFloat(size);
  }
  return in;
}
inline void ExpectFarGatesVanishOrPass(const std::vector<uint16_t>& got) {
  const std::vector<uint16_t> in = FarGates();
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(FloatFromBF16(got[i]), 0) << "gate " << FloatFromBF16(in[i]);
    EXPECT_EQ(got[8 + i], in[16 + i]) << "gate " << FloatFromBF16(in[16 + i]);
  }
}

}  // namespace terrace
