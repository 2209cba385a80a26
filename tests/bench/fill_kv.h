// A KV pool with something in it. Pages that were never written are all one page of zeros, which stays in the
// first cache: reading them says nothing of memory.
#pragma once

#include <algorithm>
#include <cstring>

#include "worker/kv/kv_pool.h"

namespace terrace {

// Every row is the same small positive numbers.
inline void FillKv(KvPool& pool) {
  const KvShape& shape = pool.shape();
  const size_t rows = size_t{shape.blocks} * shape.kv_heads * shape.block_tokens;
  for (uint32_t i = 0; i < shape.layers; ++i) {
    const KvLayer layer = pool.layer(i);
    for (const KvRows& part : {layer.keys, layer.values}) {
      std::memset(part.data, 0x2c, rows * shape.head_dim * KvElementBytes(shape.dtype));
      if (HasScales(shape.dtype)) std::fill_n(part.scales, rows, 0.01f);
    }
  }
}

}  // namespace terrace
