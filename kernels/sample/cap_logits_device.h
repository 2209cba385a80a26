// A thread takes four logits.
#pragma once

#include <cstdint>

#include "kernels/launch_geometry.h"
#include "kernels/sample/cap_logits_gpu.h"
#include "kernels/simt/simt.h"

namespace terrace {

// tanh(x) = 1 - 2 / (1 + exp(2 x)), which is 1 or -1 far from 0; off by at most 16 * 2^-24 of the cap
// (cap_logits_testing.h).
TERRACE_DEVICE float CappedLogit(float logit, float cap) {
  constexpr float kTwoLog2E = 2.88539008f;
  const float nan_unless_finite = logit - logit;  // else 0
  const float tanh = 1 - 2 * simt::Reciprocal(1 + simt::Exp2(logit / cap * kTwoLog2E));
  return cap * tanh + nan_unless_finite;
}

// Grid: one thread for four logits, or fewer.
TERRACE_KERNEL void TERRACE_BOUNDS(kElementwiseThreads, 4) CapLogitsKernel(GpuCapLogitsArgs a) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  auto* const logits = reinterpret_cast<float4*>(a.logits);
  const uint64_t quads = a.count / 4, stride = uint64_t{gridDim.x} * blockDim.x;
  for (uint64_t quad = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; quad < quads; quad += stride) {
    const float4 raw = logits[quad];
    logits[quad] = {CappedLogit(raw.x, a.cap), CappedLogit(raw.y, a.cap), CappedLogit(raw.z, a.cap),
                    CappedLogit(raw.w, a.cap)};
  }
}

}  // namespace terrace
