#include "worker/kv/kv_pool.h"

#include <limits>
#include <new>

namespace terrace {

StatusOr<std::unique_ptr<KvPool>> KvPool::Create(const KvShape& shape) {
  // Factors of up to 32 bits: multiplied one by one, each checked.
  uint64_t bytes = 2 * sizeof(float);
  for (const uint64_t factor :
       {shape.layers, shape.kv_heads, shape.head_dim, shape.block_tokens, shape.blocks}) {
    CHECK(factor > 0, "an empty KV pool");
    if (bytes > std::numeric_limits<ptrdiff_t>::max() / factor) {
      return ResourceExhausted("KV cache: ", shape.blocks, " blocks of ", shape.block_tokens,
                               " positions pass what an address can reach");
    }
    bytes *= factor;
  }
  std::unique_ptr<float[]> memory(
      new (std::nothrow) float[bytes / sizeof(float)]);  // not cleared: pages come when used
  if (memory == nullptr) return ResourceExhausted("KV cache: ", bytes, " bytes cannot be had");
  return std::unique_ptr<KvPool>(new KvPool(shape, std::move(memory)));
}

}  // namespace terrace
