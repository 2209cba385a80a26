// How many KV blocks a worker has. Pure.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "worker/kv/kv_pool.h"

namespace terrace {

// Whose memory the pool is in. The host has the swap memory too, and other processes: a pool whose size is
// not set takes half of what is free. A device's memory is the pool's, once the weights and the scratch are
// out.
enum class KvPlace : uint8_t { kHost, kDevice };

struct KvSizingInput {
  KvPlace place = KvPlace::kHost;
  KvShape
      shape;  // its `blocks` are what is asked for; on the host its host_blocks come out of free_bytes first
  uint32_t context_length = 0;
  uint32_t max_sequences = 0;
  uint64_t pool_bytes = 0;  // 0: max_sequences full contexts, at most the place's share of free_bytes
  uint64_t free_bytes = 0;  // of the place
};

struct KvSizing {
  uint32_t blocks = 0;
  uint64_t bytes = 0;
  std::string arithmetic;  // for the log: every number that went in
};

// RESOURCE_EXHAUSTED, reason kv_pool_too_small, with needed and free bytes when one full context does not fit
// or more than the free memory was asked for.
StatusOr<KvSizing> SizeKvPool(const KvSizingInput& input);

// The same of a drafter's pool: at most an eighth of the free memory, unless its size is set. It may be
// smaller than one context, as sequences that find no blocks just get no drafts.
StatusOr<KvSizing> SizeDraftPool(const KvSizingInput& input);

}  // namespace terrace
