// The gate of a SwiGLU feed-forward layer (Shazeer, "GLU Variants Improve Transformer", 2020):
//   out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
// Plain pointers: the same struct goes to the host's and to the device's kernels.
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
