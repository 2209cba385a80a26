// A block takes kEmbedColumns columns of one token. Threads read 8 bytes and write 16: what is written is
// twice what is read, and it is written in whole lines.
#pragma once

#include <cstdint>

#include "kernels/embed/embed_gpu.h"
#include "kernels/simt/simt.h"

namespace terrace {

inline constexpr uint32_t kEmbedThreads = 256, kEmbedQuads = 4;  // quads of columns a thread
inline constexpr uint32_t kEmbedColumns = 4 * kEmbedQuads * kEmbedThreads;

// Grid: [count, parts of kEmbedColumns].
TERRACE_KERNEL void TERRACE_BOUNDS(kEmbedThreads, 4) EmbedKernel(GpuEmbedArgs a) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  const uint32_t quads = a.width / 4, first = blockIdx.y * (kEmbedQuads * kEmbedThreads) + threadIdx.x;
  const auto token = static_cast<uint32_t>(a.tokens[blockIdx.x]);
  const bool is_known = token < a.vocab;
  const auto* const from = reinterpret_cast<const uint2*>(a.table + uint64_t{is_known ? token : 0} * a.width);
  auto* const to = reinterpret_cast<float4*>(a.out + uint64_t{blockIdx.x} * a.width);
  uint2 bits[kEmbedQuads];
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kEmbedQuads; ++i) {
    const uint32_t quad = first + i * kEmbedThreads;
    bits[i] = {0x7fc07fc0, 0x7fc07fc0};  // NaN
    if (is_known && quad < quads) bits[i] = simt::LoadReadOnly(from + quad);
  }
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kEmbedQuads; ++i) {
    const uint32_t quad = first + i * kEmbedThreads;
    if (quad >= quads) continue;
    to[quad] = {a.scale * simt::BF16Low(bits[i].x), a.scale * simt::BF16High(bits[i].x),
                a.scale * simt::BF16Low(bits[i].y), a.scale * simt::BF16High(bits[i].y)};
  }
}

}  // namespace terrace
