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

// What a pool may have, and what it takes of that.
struct Allowance {
  uint64_t blocks_per_context = 0, wanted_blocks = 0, bytes = 0, blocks = 0;
};

Allowance Allow(const KvSizingInput& input, uint64_t share_of_free) {
  Allowance out;
  out.blocks_per_context = BlocksFor(input.context_length, input.shape.block_tokens);
  out.wanted_blocks = out.blocks_per_context * input.max_sequences;
  out.bytes = input.pool_bytes > 0 ? input.pool_bytes : share_of_free;
  out.blocks = out.bytes / input.shape.BlockBytes();
  if (input.pool_bytes == 0) out.blocks = std::min(out.blocks, out.wanted_blocks);
  out.blocks = std::min<uint64_t>(out.blocks, std::numeric_limits<BlockId>::max());
  return out;
}

std::string Arithmetic(const KvSizingInput& input, const Allowance& allowance, std::string_view share_name) {
  const uint64_t block_bytes = input.shape.BlockBytes();
  return Concat(input.max_sequences, " sequences x ", allowance.blocks_per_context, " blocks of ",
                input.shape.block_tokens, " tokens x ", block_bytes, " bytes in ",
                KvDTypeName(input.shape.dtype), " = ", allowance.wanted_blocks * block_bytes, " bytes; ",
                input.pool_bytes > 0 ? "pool_bytes " : share_name, allowance.bytes, "; ", allowance.blocks,
                " blocks = ", allowance.blocks * block_bytes, " bytes; free memory ", input.free_bytes);
}

}  // namespace

StatusOr<KvSizing> SizeKvPool(const KvSizingInput& input) {
  const uint64_t block_bytes = input.shape.BlockBytes();
  // The swap memory is the host's.
  const uint64_t host_bytes = input.place == KvPlace::kHost ? input.shape.host_blocks * block_bytes : 0;
  const uint64_t free_bytes = input.free_bytes - std::min(input.free_bytes, host_bytes);
  const Share share = ShareOf(input.place);
  const Allowance allowed = Allow(input, free_bytes * share.percent / 100);
  const std::string arithmetic =
      Arithmetic(input, allowed, share.name) +
      (host_bytes > 0 ? Concat(", less ", host_bytes, " for swapping") : std::string());
  const uint64_t bytes = allowed.blocks * block_bytes;
  if (allowed.blocks < allowed.blocks_per_context) {
    return WithReason(ResourceExhausted("KV pool: one context of ", input.context_length, " tokens needs ",
                                        allowed.blocks_per_context * block_bytes, " bytes, but only ",
                                        allowed.bytes, " may be used (", arithmetic, ")"),
                      "kv_pool_too_small");
  }
  if (bytes > free_bytes) {
    return WithReason(
        ResourceExhausted("KV pool: ", bytes, " bytes needed, ", free_bytes, " free (", arithmetic, ")"),
        "kv_pool_too_small");
  }
  return KvSizing{static_cast<uint32_t>(allowed.blocks), bytes, arithmetic};
}

StatusOr<KvSizing> SizeDraftPool(const KvSizingInput& input) {
  constexpr uint64_t kShare = 8;
  const Allowance allowed = Allow(input, input.free_bytes / kShare);
  const std::string arithmetic = Arithmetic(input, allowed, "an eighth of the free memory ");
  const uint64_t bytes = allowed.blocks * input.shape.BlockBytes();
  if (allowed.blocks == 0 || bytes > input.free_bytes) {
    return WithReason(ResourceExhausted("engine.speculation: the drafter's KV pool may take ", allowed.bytes,
                                        " bytes; a block takes ", input.shape.BlockBytes(), ", free memory ",
                                        input.free_bytes, " (", arithmetic, ")"),
                      "kv_pool_too_small");
  }
  return KvSizing{static_cast<uint32_t>(allowed.blocks), bytes, arithmetic};
}

}  // namespace terrace
