// The rival of the same-bits contract: kernels that may add in any order.
#pragma once

#include <cstddef>

#include "kernels/cpu_leaves.h"
#include "kernels/op_table.h"

namespace terrace {

// The shipped sources, compiled with -ffast-math.
const OpTable& FreeOrderCpuOps();

// What the contract forbids, for one thread; only with AVX-512.
bool HasFreeOrderLeaves();
// The shipped leaves, compiled with -ffast-math.
const CpuLeaves& FreeOrderLeaves();
// Part of a softmax: sum_j exp(s[j] - largest), beside weighted values that are still to be divided by it.
struct SoftmaxPart {
  float largest, sum;
};
// Attends to positions [first, last) of every token that reaches them, all at once: one largest score, no
// running rescaling, and tokens of different lengths share a block, masked. Writes `out`, [tokens, heads,
// head_dim], and `parts`, [tokens, heads]; at most kFreeOrderPositions positions. f32 and a
// head_dim of whole vectors only.
inline constexpr size_t kFreeOrderPositions = 8192;
void FreeOrderAttention(const PagedAttentionArgs& args, size_t first, size_t last, float* out,
                        SoftmaxPart* parts);

}  // namespace terrace
