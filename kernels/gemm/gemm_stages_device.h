// What gemm kernels of many tokens share: a block's columns come in stages, copied to shared memory ahead of
// the products (cp.async), in a ring of kStages slots. Before what the kernel depends on is done, the first
// stages of the weights are under way.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/simt/simt.h"

namespace terrace {

// Of `count` stages. copy_weights(stage, to) and copy_tokens(stage, to) start to copy what a stage has to a
// slot; multiply(at) adds the products of one that is here. Whole blocks call this, with at least one token.
template <uint32_t kStages, uint32_t kStageBytes, typename CopyWeights, typename CopyTokens,
          typename Multiply>
TERRACE_DEVICE void RunStages(uint32_t count, uint32_t tokens, const CopyWeights& copy_weights,
                              const CopyTokens& copy_tokens, const Multiply& multiply) {
  std::byte* const slots = simt::DynamicShared();
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kStages - 1; ++i) {
    if (i < count) copy_weights(i, slots + i * kStageBytes);
  }
  // A loop of one round is a block of its own for ptxas, which may otherwise put the wait before the copies.
  do {
    simt::WaitForPrevious();
  } while (tokens == 0);
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kStages - 1; ++i) {
    if (i < count) copy_tokens(i, slots + i * kStageBytes);
    simt::CpAsyncCommit();
  }
  uint32_t slot = 0;
  TERRACE_NO_UNROLL
  for (uint32_t stage = 0; stage < count; ++stage) {
    simt::CpAsyncWait<kStages - 2>();
    simt::SyncThreads();  // what others copied is here, and what they read of the free slot was read
    const uint32_t free = slot > 0 ? slot - 1 : kStages - 1;
    if (const uint32_t next = stage + kStages - 1; next < count) {
      copy_weights(next, slots + free * kStageBytes);
      copy_tokens(next, slots + free * kStageBytes);
    }
    simt::CpAsyncCommit();
    multiply(slots + slot * kStageBytes);
    slot = slot + 1 < kStages ? slot + 1 : 0;
  }
}

}  // namespace terrace
