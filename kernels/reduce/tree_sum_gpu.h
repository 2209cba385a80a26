// The sum of ranks' partial sums on a GPU, element by element, as a binary tree over neighbours: AddTree of
// worker/parallel/tree_sum.h, to the bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/dtype.h"

namespace terrace {

inline constexpr uint32_t kMaxTreeParts = 16;

struct GpuTreeSumArgs {
  const void* parts[kMaxTreeParts] = {};  // [count] each, in the order of the tree; one of them may be `out`
  uint32_t part_count = 0;                // 1 to kMaxTreeParts
  size_t count = 0;
  DType dtype = DType::kF32;  // or F16, BF16: widened to f32, added, and the sum rounded once
  void* out = nullptr;        // [count]
};

}  // namespace terrace
