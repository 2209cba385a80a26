// add_norm.h on a GPU: hidden[i][j] += x[i][j] / sqrt(mean_j(x[i][j]^2) + epsilon) * weight[j].
#pragma once

#include <cstdint>

namespace terrace {

struct GpuAddNormArgs {
  const float* x = nullptr;       // [count, width]: what a sublayer puts out
  const float* weight = nullptr;  // [width]
  float* hidden = nullptr;        // [count, width]: the residual stream
  uint32_t count = 0, width = 0;  // width a multiple of 8, at most 131072
  float epsilon = 0;
};

}  // namespace terrace
