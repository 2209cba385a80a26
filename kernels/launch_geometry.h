// How a one-thread-per-element kernel is launched: arithmetic of the host, kept apart from CUDA so that it is
// tested without a device.
#pragma once

#include <cstddef>
#include <cstdint>

namespace terrace {

struct LaunchGeometry {
  uint32_t blocks = 0;   // 0: nothing to launch (CUDA refuses an empty grid)
  uint32_t threads = 0;  // per block
};

inline constexpr uint32_t kElementwiseThreads = 256;  // 8 warps: enough to fill a multiprocessor at 8 blocks
inline constexpr uint32_t kMaxGridBlocks = 0x7fffffff;  // of dimension x, since compute capability 3.0

// At least one thread per element, at most kMaxGridBlocks blocks: a kernel strides by the whole grid to reach
// the elements beyond.
constexpr LaunchGeometry ElementwiseGeometry(size_t elements) {
  const size_t blocks = elements / kElementwiseThreads + (elements % kElementwiseThreads != 0);
  return {static_cast<uint32_t>(blocks < kMaxGridBlocks ? blocks : kMaxGridBlocks), kElementwiseThreads};
}

}  // namespace terrace
