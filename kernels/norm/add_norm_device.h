// As RMSNorm (rms_norm_device.h): a block a row; a row of up to kRmsNormKept elements is read once, a wider
// one twice. Values are hidden + (x * weight) * r, the sum rounded once.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/norm/add_norm_gpu.h"
#include "kernels/norm/rms_norm_device.h"
#include "kernels/simt/simt.h"

namespace terrace {

// Of the block's row; NaN where the squares overflow: nothing would be added.
TERRACE_DEVICE float ScaleOfRow(const GpuAddNormArgs& a, const RmsNormSums& sums) {
  if (!(sums.squares < INFINITY)) return NAN;
  return simt::ReciprocalSqrt(fmaf(sums.squares, simt::Reciprocal(static_cast<float>(a.width)), a.epsilon));
}

TERRACE_DEVICE float4 SumQuad(const float4& hidden, const float4& x, const float4& weight, float r) {
  return {fmaf(x.x * weight.x, r, hidden.x), fmaf(x.y * weight.y, r, hidden.y),
          fmaf(x.z * weight.z, r, hidden.z), fmaf(x.w * weight.w, r, hidden.w)};
}

// Grid: [count]; up to kQuads * threads quads a row.
template <uint32_t kQuads>
TERRACE_KERNEL void TERRACE_BOUNDS(kRmsNormThreads, 2) AddNormKernel(GpuAddNormArgs a) {
  simt::LetNextStart();
  const uint32_t quads = a.width / 4;
  float4 weight[kQuads], x[kQuads], hidden[kQuads] = {};
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kQuads; ++i) {
    const uint32_t quad = i * blockDim.x + threadIdx.x;
    weight[i] = {};
    if (quad < quads) weight[i] = reinterpret_cast<const float4*>(a.weight)[quad];
  }
  simt::WaitForPrevious();
  const auto* const from = reinterpret_cast<const float4*>(a.x + uint64_t{blockIdx.x} * a.width);
  auto* const stream = reinterpret_cast<float4*>(a.hidden + uint64_t{blockIdx.x} * a.width);
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kQuads; ++i) {
    const uint32_t quad = i * blockDim.x + threadIdx.x;
    x[i] = {};
    if (quad < quads) {
      x[i] = from[quad];
      hidden[i] = stream[quad];
    }
  }
  RmsNormSums sums;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kQuads; ++i) AddQuad(sums, x[i], weight[i]);
  const float r = ScaleOfRow(a, SumOfBlock<RowCodes::kNone>(sums));
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kQuads; ++i) {
    const uint32_t quad = i * blockDim.x + threadIdx.x;
    if (quad < quads) stream[quad] = SumQuad(hidden[i], x[i], weight[i], r);
  }
}

// Grid: [count]; rows of any width.
TERRACE_KERNEL void TERRACE_BOUNDS(kRmsNormWideThreads, 1) AddNormWideKernel(GpuAddNormArgs a) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  const uint32_t quads = a.width / 4;
  const auto* const weight = reinterpret_cast<const float4*>(a.weight);
  const auto* const from = reinterpret_cast<const float4*>(a.x + uint64_t{blockIdx.x} * a.width);
  auto* const stream = reinterpret_cast<float4*>(a.hidden + uint64_t{blockIdx.x} * a.width);
  RmsNormSums sums;
  for (uint32_t quad = threadIdx.x; quad < quads; quad += blockDim.x) AddQuad(sums, from[quad], {});
  const float r = ScaleOfRow(a, SumOfBlock<RowCodes::kNone>(sums));
  for (uint32_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
    stream[quad] = SumQuad(stream[quad], from[quad], simt::LoadReadOnly(weight + quad), r);
  }
}

// Of the host: calls launch(kernel, threads of a block) with the kernel for `args`, whose grid is [count].
template <typename Launch>
auto LaunchAddNorm(const GpuAddNormArgs& args, const Launch& launch) {
  const uint32_t quads = args.width / 4;
  const auto threads = [quads](uint32_t per_thread) {  // whole warps
    return (quads + per_thread * simt::kWarp - 1) / (per_thread * simt::kWarp) * simt::kWarp;
  };
  if (quads <= kRmsNormThreads) return launch(AddNormKernel<1>, threads(1));
  if (quads <= 2 * kRmsNormThreads) return launch(AddNormKernel<2>, threads(2));
  if (args.width <= kRmsNormKept) return launch(AddNormKernel<4>, threads(4));
  return launch(AddNormWideKernel, kRmsNormWideThreads);
}

}  // namespace terrace
