#include "worker/kv/block_allocator.h"

#include <limits>

namespace terrace {

BlockAllocator::BlockAllocator(size_t total) : is_held_(total, false) {
  CHECK(total <= static_cast<size_t>(std::numeric_limits<BlockId>::max()), total, " KV blocks");
  free_.reserve(total);
  for (size_t id = total; id > 0; --id)
    free_.push_back(static_cast<BlockId>(id - 1));  // 0 is handed out first
}

Status BlockAllocator::Allocate(size_t count, BlockTable& table) {
  if (count > free_.size()) {
    return ResourceExhausted("KV cache: ", count, " blocks asked for, ", free_.size(), " of ", total(),
                             " free");
  }
  for (size_t i = 0; i < count; ++i) {
    const BlockId id = free_.back();
    free_.pop_back();
    is_held_[static_cast<size_t>(id)] = true;
    table.push_back(id);
  }
  held_count_ += count;
  return absl::OkStatus();
}

void BlockAllocator::Release(BlockTable& table) {
  for (const BlockId id : table) {
    CHECK(id >= 0 && static_cast<size_t>(id) < total() && is_held_[static_cast<size_t>(id)], "KV block ", id,
          " is given back but not held");
    is_held_[static_cast<size_t>(id)] = false;
    free_.push_back(id);
  }
  held_count_ -= table.size();
  table.clear();
}

}  // namespace terrace
