// RMSNorm in one block a row. A row of up to kRmsNormKept elements is read once and kept in registers; a
// wider one is read twice, the second time from a cache. Which thread sums what depends on the width alone.
//
// Values are (x * weight) * r, r = 1 / sqrt(mean(x^2) + epsilon): multiplying by r keeps the order, so the
// largest |x * weight|, known together with the sum of squares, gives the largest value to the bit.
#pragma once

#include <cstdint>

#include "kernels/norm/rms_norm_gpu.h"
#include "kernels/quant/int8_device.h"
#include "kernels/simt/simt.h"

namespace terrace {

inline constexpr uint32_t kRmsNormThreads = 512, kRmsNormWideThreads = 1024;  // at most
inline constexpr uint32_t kRmsNormKept = 8192;

struct RmsNormSums {
  float squares = 0;
  uint32_t largest = 0;  // Magnitude of x * weight
};

TERRACE_DEVICE void AddQuad(RmsNormSums& sums, const float4& x, const float4& weight) {
  sums.squares += x.x * x.x;
  sums.squares += x.y * x.y;
  sums.squares += x.z * x.z;
  sums.squares += x.w * x.w;
  sums.largest = Larger(sums.largest, Larger(Larger(Magnitude(x.x * weight.x), Magnitude(x.y * weight.y)),
                                             Larger(Magnitude(x.z * weight.z), Magnitude(x.w * weight.w))));
}

// Of the block; every thread gets it. Called once a kernel.
template <RowCodes kCodes>
TERRACE_DEVICE RmsNormSums SumOfBlock(RmsNormSums mine) {
  TERRACE_SHARED float squares[simt::kWarp];
  TERRACE_SHARED uint32_t largest[simt::kWarp];
  const auto sum_of_warp = [](RmsNormSums sums) {
    sums.squares = simt::WarpSum(sums.squares);
    if constexpr (kCodes != RowCodes::kNone) {
      for (uint32_t mask = simt::kWarp / 2; mask > 0; mask /= 2) {
        sums.largest = Larger(sums.largest, simt::ShuffleXor(sums.largest, mask));
      }
    }
    return sums;
  };
  mine = sum_of_warp(mine);
  if (simt::Lane() == 0) {
    squares[simt::WarpIndex()] = mine.squares;
    largest[simt::WarpIndex()] = mine.largest;
  }
  simt::SyncThreads();
  RmsNormSums of_warp;
  if (simt::Lane() < blockDim.x / simt::kWarp) {
    of_warp = {squares[simt::Lane()], largest[simt::Lane()]};
  }
  return sum_of_warp(of_warp);
}

// What turns x * weight into the outputs of a row.
struct RmsNormRow {
  float r;
  CodeRow codes;
};

template <RowCodes kCodes>
TERRACE_DEVICE RmsNormRow RowOfSums(const GpuRmsNormArgs& a, const RmsNormSums& sums) {
  RmsNormRow row = {
      simt::ReciprocalSqrt(sums.squares * simt::Reciprocal(static_cast<float>(a.width)) + a.epsilon), {}};
  if constexpr (kCodes != RowCodes::kNone) {
    row.codes = CodeRowOf<kCodes>(Magnitude(simt::FloatOfBits(sums.largest) * row.r));
    if (threadIdx.x == 0) a.scales[blockIdx.x] = row.codes.scale;
  }
  return row;
}

// Elements 4 quad to 4 quad + 3 of the row of this block.
template <RowCodes kCodes>
TERRACE_DEVICE void PutQuad(const GpuRmsNormArgs& a, const RmsNormRow& row, uint32_t quad, const float4& x,
                            const float4& weight) {
  const float v0 = x.x * weight.x * row.r, v1 = x.y * weight.y * row.r;
  const float v2 = x.z * weight.z * row.r, v3 = x.w * weight.w * row.r;
  const uint64_t first = uint64_t{blockIdx.x} * a.width;
  if (kCodes == RowCodes::kNone || a.out != nullptr) {
    reinterpret_cast<uint2*>(a.out + first)[quad] = {simt::PackBF16(v0, v1), simt::PackBF16(v2, v3)};
  }
  if constexpr (kCodes != RowCodes::kNone) {
    reinterpret_cast<uint32_t*>(a.out_codes + first)[quad] =
        PackCodes<kCodes>(v0, v1, v2, v3, row.codes.inverse);
  }
}

TERRACE_DEVICE const float4* RowOfBlock(const GpuRmsNormArgs& a) {
  const uint32_t row = a.rows == nullptr ? blockIdx.x : a.rows[blockIdx.x];
  return reinterpret_cast<const float4*>(a.x + uint64_t{row} * a.width);
}

// Grid: [count]; up to kQuads * threads quads a row.
template <uint32_t kQuads, RowCodes kCodes>
TERRACE_KERNEL void TERRACE_BOUNDS(kRmsNormThreads, 2) RmsNormKernel(GpuRmsNormArgs a) {
  simt::LetNextStart();
  const uint32_t quads = a.width / 4;
  // Plain loads: ptxas moves those of LoadReadOnly, which no one's writes concern, to behind the wait.
  float4 weight[kQuads], x[kQuads];
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kQuads; ++i) {
    const uint32_t quad = i * blockDim.x + threadIdx.x;
    weight[i] = {};
    if (quad < quads) weight[i] = reinterpret_cast<const float4*>(a.weight)[quad];
  }
  simt::WaitForPrevious();
  const float4* const from = RowOfBlock(a);
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kQuads; ++i) {
    const uint32_t quad = i * blockDim.x + threadIdx.x;
    x[i] = {};
    if (quad < quads) x[i] = from[quad];
  }
  RmsNormSums sums;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kQuads; ++i) AddQuad(sums, x[i], weight[i]);
  const RmsNormRow row = RowOfSums<kCodes>(a, SumOfBlock<kCodes>(sums));
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kQuads; ++i) {
    const uint32_t quad = i * blockDim.x + threadIdx.x;
    if (quad < quads) PutQuad<kCodes>(a, row, quad, x[i], weight[i]);
  }
}

// Grid: [count]; rows of any width.
template <RowCodes kCodes>
TERRACE_KERNEL void TERRACE_BOUNDS(kRmsNormWideThreads, 1) RmsNormWideKernel(GpuRmsNormArgs a) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  const uint32_t quads = a.width / 4;
  const float4 *from = RowOfBlock(a), *weight = reinterpret_cast<const float4*>(a.weight);
  RmsNormSums sums;
  for (uint32_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
    AddQuad(sums, from[quad], simt::LoadReadOnly(weight + quad));
  }
  const RmsNormRow row = RowOfSums<kCodes>(a, SumOfBlock<kCodes>(sums));
  for (uint32_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
    PutQuad<kCodes>(a, row, quad, from[quad], simt::LoadReadOnly(weight + quad));
  }
}

template <RowCodes kCodes, typename Launch>
auto LaunchRmsNormAs(uint32_t width, const Launch& launch) {
  const uint32_t quads = width / 4;
  const auto threads = [quads](uint32_t per_thread) {  // whole warps
    return (quads + per_thread * simt::kWarp - 1) / (per_thread * simt::kWarp) * simt::kWarp;
  };
  if (quads <= kRmsNormThreads) return launch(RmsNormKernel<1, kCodes>, threads(1));
  if (quads <= 2 * kRmsNormThreads) return launch(RmsNormKernel<2, kCodes>, threads(2));
  if (width <= kRmsNormKept) return launch(RmsNormKernel<4, kCodes>, threads(4));
  return launch(RmsNormWideKernel<kCodes>, kRmsNormWideThreads);
}

// Of the host: calls launch(kernel, threads of a block) with the kernel for `args`, whose grid is [count].
template <typename Launch>
auto LaunchRmsNorm(const GpuRmsNormArgs& args, const Launch& launch) {
  switch (args.codes) {
    case RowCodes::kE4M3:
      return LaunchRmsNormAs<RowCodes::kE4M3>(args.width, launch);
    case RowCodes::kInt8:
      return LaunchRmsNormAs<RowCodes::kInt8>(args.width, launch);
    case RowCodes::kNone:
      break;
  }
  return LaunchRmsNormAs<RowCodes::kNone>(args.width, launch);
}

}  // namespace terrace
