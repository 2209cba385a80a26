// Hands out KV blocks and counts them: free() + held() == total() after every call. Owned by the Scheduler;
// one thread. It knows ids only; the memory is KvPool's.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "worker/kv/block_table.h"

namespace terrace {

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

}  // namespace terrace
