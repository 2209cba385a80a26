// A block of threads copies the rows of one part and head: a few KiB that lie together on both sides.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/copy/kv_copy_gpu.h"
#include "kernels/simt/simt.h"

namespace terrace {

inline constexpr uint32_t kKvCopyThreads = 256, kKvCopyInFlight = 4;  // loads of a thread

// Units [begin, end) of type T, by the whole block.
template <typename T>
TERRACE_DEVICE void CopyUnits(const std::byte* from, std::byte* to, uint32_t begin, uint32_t end) {
  for (uint32_t first = begin + threadIdx.x; first < end; first += kKvCopyInFlight * kKvCopyThreads) {
    T held[kKvCopyInFlight] = {};
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kKvCopyInFlight; ++i) {
      const uint32_t at = first + i * kKvCopyThreads;
      if (at < end) held[i] = reinterpret_cast<const T*>(from)[at];
    }
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kKvCopyInFlight; ++i) {
      const uint32_t at = first + i * kKvCopyThreads;
      if (at < end) reinterpret_cast<T*>(to)[at] = held[i];
    }
  }
}

// Grid: [part_count, kv_heads].
TERRACE_KERNEL void TERRACE_BOUNDS(kKvCopyThreads, 4) KvCopyKernel(GpuKvCopyArgs a) {
  simt::LetNextStart();
  const GpuKvPart part = a.parts[blockIdx.x];
  const uint32_t head = blockIdx.y, bytes = a.rows * part.row_bytes;
  const auto in_pool = [&](uint32_t block) {
    return static_cast<std::byte*>(part.data) + (uint64_t{head} * a.blocks + block) * part.bytes;
  };
  std::byte* const staged = static_cast<std::byte*>(a.staging) + part.staged_at + uint64_t{head} * part.bytes;
  const bool is_staged = a.staging != nullptr;
  const std::byte* const from = is_staged && a.to_pool ? staged : in_pool(a.from);
  std::byte* const to = is_staged && !a.to_pool ? staged : in_pool(a.to);
  simt::WaitForPrevious();
  const bool is_aligned = ((reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) & 15) == 0;
  const uint32_t wide = is_aligned ? bytes / 16 : 0;
  CopyUnits<uint4>(from, to, 0, wide);
  CopyUnits<uint32_t>(from, to, 4 * wide, bytes / 4);
}

}  // namespace terrace
