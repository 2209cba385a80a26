// Moves the rows of blocks of a KV pool on a GPU: within the pool, and between it and a staging buffer in
// which a block's rows lie together, for one copy to or from the host.
#pragma once

#include <cstdint>

namespace terrace {

// The parts of a pool: for each layer keys, values and, of int8, their scales, each [kv_heads, blocks, part
// of a block] bytes.
struct GpuKvPart {
  void* data = nullptr;
  uint32_t bytes = 0;      // of a block and head
  uint32_t row_bytes = 0;  // of a row of it, a multiple of 4
  uint64_t staged_at = 0;  // bytes: where in a staging buffer its [kv_heads, bytes] begin, a multiple of 4
};

struct GpuKvCopyArgs {
  const GpuKvPart* parts = nullptr;  // [part_count] device memory, the same since it was first given
  uint32_t part_count = 0;
  uint32_t kv_heads = 0, blocks = 0;
  uint32_t from = 0, to = 0;  // blocks of the pool
  uint32_t rows = 0;          // of the block, from its first
  void* staging = nullptr;    // null: within the pool; else block `from` goes there, or (to_pool) it to `to`
  bool to_pool = false;
};

}  // namespace terrace
