// One block a row, which is read twice: the second time from a cache.
#pragma once

#include <cstdint>

#include "kernels/quant/int8_device.h"
#include "kernels/quant/quantize_rows_gpu.h"
#include "kernels/simt/simt.h"

namespace terrace {

inline constexpr uint32_t kQuantizeThreads = 256;

TERRACE_DEVICE uint32_t LargestOfPair(uint32_t largest, uint32_t pair) {
  return Larger(largest, Larger(Magnitude(simt::BF16Low(pair)), Magnitude(simt::BF16High(pair))));
}

template <RowCodes kCodes>
TERRACE_DEVICE uint32_t CodesOf(uint32_t pair0, uint32_t pair1, float inverse) {
  return PackCodes<kCodes>(simt::BF16Low(pair0), simt::BF16High(pair0), simt::BF16Low(pair1),
                           simt::BF16High(pair1), inverse);
}

// Grid: [rows].
template <RowCodes kCodes>
TERRACE_KERNEL void TERRACE_BOUNDS(kQuantizeThreads, 4) QuantizeRowsKernel(GpuQuantizeRowsArgs a) {
  TERRACE_SHARED uint32_t of_warps[kQuantizeThreads / simt::kWarp];
  simt::LetNextStart();
  simt::WaitForPrevious();
  const uint32_t eights = a.width / 8;
  const auto* x = reinterpret_cast<const uint4*>(a.x + uint64_t{blockIdx.x} * a.width);
  auto* out = reinterpret_cast<uint2*>(a.out + uint64_t{blockIdx.x} * a.width);
  uint32_t largest = 0;
  for (uint32_t i = threadIdx.x; i < eights; i += kQuantizeThreads) {
    const uint4 v = x[i];
    largest = LargestOfPair(LargestOfPair(LargestOfPair(LargestOfPair(largest, v.x), v.y), v.z), v.w);
  }
  for (uint32_t mask = simt::kWarp / 2; mask > 0; mask /= 2) {
    largest = Larger(largest, simt::ShuffleXor(largest, mask));
  }
  if (simt::Lane() == 0) of_warps[simt::WarpIndex()] = largest;
  simt::SyncThreads();
  for (uint32_t i = 0; i < kQuantizeThreads / simt::kWarp; ++i) largest = Larger(largest, of_warps[i]);
  const CodeRow row = CodeRowOf<kCodes>(largest);
  if (threadIdx.x == 0) a.scales[blockIdx.x] = row.scale;
  for (uint32_t i = threadIdx.x; i < eights; i += kQuantizeThreads) {
    const uint4 v = x[i];
    out[i] = {CodesOf<kCodes>(v.x, v.y, row.inverse), CodesOf<kCodes>(v.z, v.w, row.inverse)};
  }
}

}  // namespace terrace
