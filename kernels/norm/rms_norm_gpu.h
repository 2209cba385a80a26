// out[i][j] = x[r][j] / sqrt(mean_j(x[r][j]^2) + epsilon) * weight[j], r = rows[i] or i (Zhang and Sennrich,
// "Root Mean Square Layer Normalization", 2019), on a GPU.
#pragma once

#include <cstdint>

#include "kernels/quant/row_codes_gpu.h"

namespace terrace {

struct GpuRmsNormArgs {
  const float* x = nullptr;        // [.., width]: the residual stream
  const float* weight = nullptr;   // [width]
  const uint32_t* rows = nullptr;  // [count], or null: row i is i
  uint32_t count = 0, width = 0;   // width a multiple of 8, at most 131072
  float epsilon = 0;
  uint16_t* out = nullptr;  // [count, width] bf16, or null with codes
  RowCodes codes = RowCodes::kNone;
  uint8_t* out_codes = nullptr;  // of codes: [count, width]
  float* scales = nullptr;       // of codes: [count], value = scale * code
};

}  // namespace terrace
