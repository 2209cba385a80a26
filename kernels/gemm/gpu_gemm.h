// out[t][n] (+)= sum_k x[t][k] * weights[n][k] on a GPU, f32 sums.
#pragma once

#include <cstdint>

#include "kernels/activation/gate_function.h"
#include "kernels/gemm/gpu_matrix.h"

namespace terrace {

enum class GpuGemmOut : uint8_t {
  kBF16,    // [tokens, rows] bf16
  kF32,     // [tokens, rows] f32
  kAddF32,  // the same, added to what is there
  kGated,   // [tokens, rows / 2] bf16: rows come in tiles of 8 of the gate and the 8 of up beside them;
            // gate function of the gate, times up
};

struct GpuGemmArgs {
  const uint16_t* x = nullptr;  // [tokens, columns] bf16
  uint32_t tokens = 0;
  GpuMatrix weights;
  void* out = nullptr;
  GpuGemmOut kind = GpuGemmOut::kBF16;
  GateFunction gate = GateFunction::kSilu;  // of kGated

  // RMSNorm without a kernel of its own, by stream_gemm for up to kMostNormTokens tokens. What makes the
  // residual stream leaves bf16(out * next_norm) for the next product, and of each tile of rows the sum of
  // out^2;
  const float* next_norm = nullptr;  // [rows], or null; of kAddF32
  uint16_t* next_x = nullptr;        // [tokens, rows]
  float* next_squares = nullptr;     // [tokens, rows / kTileRows]
  // and the next product, whose x that is, divides its sums by sqrt(mean of the squares + epsilon).
  const float* x_squares = nullptr;  // [tokens, columns / kTileRows], or null
  float epsilon = 0;
};

inline constexpr uint32_t kMostNormTokens = 8;

}  // namespace terrace
