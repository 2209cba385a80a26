// The gate of a SwiGLU feed-forward layer (Shazeer, "GLU Variants Improve Transformer", 2020):
//   out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
// Of the CUDA backend; on CPUs it is part of gemm.
#pragma once

#include <cstddef>

namespace terrace {

struct SiluMulArgs {
  const float* gate = nullptr;  // [count]
  const float* up = nullptr;    // [count]
  float* out = nullptr;         // [count]; may be gate or up
  size_t count = 0;
};

}  // namespace terrace
