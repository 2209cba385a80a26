// What the kernels of a GPU know of a step: which tokens, where their keys and values lie. All pointers are
// device memory. Values; passed to kernels as they are.
#pragma once

#include <cstdint>

#include "kernels/attention/kv_layer.h"

namespace terrace {

struct GpuBatch {
  uint32_t tokens = 0;                    // rows of the step
  const uint32_t* positions = nullptr;    // [tokens] in its sequence
  const uint32_t* sequences = nullptr;    // [tokens] row of block_tables
  const int32_t* block_tables = nullptr;  // [sequences, table_pitch] block of the pool
  uint32_t table_pitch = 0;
  uint32_t kv_heads = 0, head_dim = 0;
  uint32_t blocks = 0;             // of the pool
  uint32_t log2_block_tokens = 0;  // blocks of a power of two of positions, at least 16
};

// The row of `position` of head `kv_head` of sequence `sequence`, in KvLayer's order.
#ifdef __CUDACC__
__host__ __device__
#endif
    inline uint64_t
    KvRow(const GpuBatch& batch, uint32_t sequence, uint32_t kv_head, uint32_t position) {
  const uint32_t block_tokens = 1u << batch.log2_block_tokens;
  const int32_t block =
      batch.block_tables[uint64_t{sequence} * batch.table_pitch + (position >> batch.log2_block_tokens)];
  return (uint64_t{kv_head} * batch.blocks + static_cast<uint32_t>(block)) * block_tokens +
         (position & (block_tokens - 1));
}

}  // namespace terrace
