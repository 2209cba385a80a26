// The gate functions on a device: of gate_mul, and of products whose output is kGated.
#pragma once

#include <cmath>

#include "kernels/activation/gate_function.h"
#include "kernels/simt/simt.h"

namespace terrace {

// Gate function of x, times up. That is x / (1 + exp(-z)) * up, off by at most (1.5 |z| + 12) 2^-24 of the
// result, of GELU (4 |z| + 12) 2^-24, or 1e-36 |up|: with z below -88 the exponential overflows. So does z of
// GELU far from 0, and the result is 0 or x * up. What is rounded is written out (stream_gemm_device.h).
TERRACE_DEVICE float GateMul(GateFunction function, float x, float up) {
  // Times x: -log2(e) z. Made of both before it is chosen: so kernels of products take no more registers.
  float slope = fmaf(x * x, -0.102943240f, -2.30220820f);
  if (function == GateFunction::kSilu) slope = -1.44269504f;
  return x * simt::Reciprocal(1 + simt::Exp2(x * slope)) * up;
}

}  // namespace terrace
