#include "worker/engine/kv_sizing.h"

#include <algorithm>
#include <limits>
#include <string_view>

#include "worker/kv/block_table.h"

namespace terrace {
namespace {

struct Share {
  uint64_t percent = 0;
  std::string_view name;
};

// The rest of a device's memory is for what its allocator rounds up and its libraries take later.
Share ShareOf(KvPlace place) {
  if (place == KvPlace::kDevice) return {95, "0.95 of the device's free memory "};
  return {50, "half of the free memory "};
}

}  // namespace

StatusOr<KvSizing> SizeKvPool(const KvSizingInput& input) {
  const uint64_t block_bytes = input.shape.BlockBytes();
  const uint64_t blocks_per_context = BlocksFor(input.context_length, input.shape.block_tokens);
  const uint64_t wanted_blocks = blocks_per_context * input.max_sequences;
  const bool is_set = input.pool_bytes > 0;
  // The swap memory is the host's.
  const uint64_t host_bytes = input.place == KvPlace::kHost ? input.shape.host_blocks * block_bytes : 0;
  const uint64_t free_bytes = input.free_bytes - std::min(input.free_bytes, host_bytes);
  const Share share = ShareOf(input.place);
  const uint64_t allowed_bytes = is_set ? input.pool_bytes : free_bytes * share.percent / 100;
  uint64_t blocks = allowed_bytes / block_bytes;
  if (!is_set) blocks = std::min(blocks, wanted_blocks);
  blocks = std::min<uint64_t>(blocks, std::numeric_limits<BlockId>::max());

  const std::string arithmetic = Concat(
      input.max_sequences, " sequences x ", blocks_per_context, " blocks of ", input.shape.block_tokens,
      " tokens x ", block_bytes, " bytes in ", KvDTypeName(input.shape.dtype), " = ",
      wanted_blocks * block_bytes, " bytes; ", is_set ? "pool_bytes " : share.name, allowed_bytes, "; ",
      blocks, " blocks = ", blocks * block_bytes, " bytes; free memory ", input.free_bytes,
      host_bytes > 0 ? Concat(", less ", host_bytes, " for swapping") : "");
  if (blocks < blocks_per_context) {
    return WithReason(ResourceExhausted("KV pool: one context of ", input.context_length, " tokens needs ",
                                        blocks_per_context * block_bytes, " bytes, but only ", allowed_bytes,
                                        " may be used (", arithmetic, ")"),
                      "kv_pool_too_small");
  }
  if (blocks * block_bytes > free_bytes) {
    return WithReason(ResourceExhausted("KV pool: ", blocks * block_bytes, " bytes needed, ", free_bytes,
                                        " free (", arithmetic, ")"),
                      "kv_pool_too_small");
  }
  return KvSizing{static_cast<uint32_t>(blocks), blocks * block_bytes, arithmetic};
}

}  // namespace terrace
