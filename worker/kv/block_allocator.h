// Hands out KV blocks and counts them: free() + held() == total() after every call. Owned by the Scheduler;
// one thread. It knows ids only; the memory is KvPool's.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"

namespace terrace {

using BlockId = int32_t;
// Block i of a sequence holds its positions [i * block_tokens, (i + 1) * block_tokens).
using BlockTable = std::vector<BlockId>;

class BlockAllocator {
 public:
  explicit BlockAllocator(size_t total);

  // `count` blocks, appended to `table`; all or none. RESOURCE_EXHAUSTED with the numbers.
  Status Allocate(size_t count, BlockTable& table);
  // Gives every block of `table` back and empties it. A block that is not held is a CHECK.
  void Release(BlockTable& table);

  size_t free() const { return free_.size(); }
  size_t held() const { return held_count_; }
  size_t total() const { return is_held_.size(); }

 private:
  std::vector<BlockId> free_;  // last in, first out: a warm block is reused first
  std::vector<bool> is_held_;  // by id
  size_t held_count_ = 0;
};

// Blocks that `tokens` positions need.
constexpr size_t BlocksFor(size_t tokens, size_t block_tokens) {
  return (tokens + block_tokens - 1) / block_tokens;
}

}  // namespace terrace
