// What the tests of int8 gemm share: rows of int8, and what an output of them is.
#pragma once

#include <vector>

#include "kernels/gemm/gpu_gemm_testing.h"
#include "kernels/gemm/int8_gemm_gpu.h"

namespace terrace {

// Any codes but -128, which activations do not have; scales of both sizes.
struct Int8Rows {
  Int8Rows(uint32_t tokens, uint32_t columns, uint64_t seed)
      : codes(size_t{tokens} * columns), scales(tokens) {
    std::mt19937_64 random(seed);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(static_cast<int>(random() % 255) - 127);
    for (float& scale : scales) scale = static_cast<float>(random() % 1000 + 1) / 1e5f;
  }
  GpuInt8Rows rows() const { return {codes.data(), scales.data()}; }

  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

// The integers' sum is exact; it is made f32, scales are multiplied, and what it is added to: 2^-24 each.
inline void ExpectInt8GemmRow(const GpuMatrix& matrix, const Int8Rows& x, uint32_t token,
                              const TestGemmOut& output, const void* out, float before, uint32_t stride = 1) {
  const bool is_gated = output.is_gated();
  const auto sum_of = [&](uint32_t row) {
    double sum = 0, scale = 0;
    for (uint32_t i = 0; i < matrix.columns; ++i) {
      const GpuElement element = GpuElementAt(matrix, row, i);
      scale = element.scale;
      sum += (double{element.code} - element.zero) *
             static_cast<int8_t>(x.codes[size_t{token} * matrix.columns + i]);
    }
    return sum * scale * x.scales[token];
  };
  constexpr double kError = 4 * 0x1p-24;
  const uint32_t outputs = is_gated ? matrix.rows / 2 : matrix.rows;
  for (uint32_t i = 0; i < outputs; i += stride) {
    double value = sum_of(is_gated ? i / 8 * 16 + i % 8 : i), got = 0;
    double bound = kError * std::abs(value);
    if (is_gated) {
      const double up = sum_of(i / 8 * 16 + 8 + i % 8), gate = GateRef(output.gate, value);
      bound = GateSlope(output.gate) * bound * std::abs(up) +
              std::abs(gate * up) * (kError + GateMulError(output.gate));
      value = gate * up;
    }
    if (output.is_f32()) {
      value += output.kind == GpuGemmOut::kAddF32 ? before : 0;
      bound += 0x1p-23 * (std::abs(value) + std::abs(before));
      got = static_cast<const float*>(out)[i];
    } else {
      bound += 0x1.01p-8 * (std::abs(value) + bound) + 1e-30;
      got = FloatFromBF16(static_cast<const uint16_t*>(out)[i]);
    }
    ASSERT_NEAR(got, value, bound) << "output " << i;
  }
}

}  // namespace terrace
