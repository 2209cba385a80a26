// The memory of the KV cache of one rank: keys and values of one dtype, per layer [kv_heads, blocks,
// block_tokens, head_dim], and a swap memory of whole blocks beside it, for sequences that wait. Owned by the
// ModelRunner and written by its thread only. Pages come when they are first written. Rows of blocks that
// were never written hold anything: attention reads a position only after its step wrote it.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "base/status.h"
#include "kernels/attention/kv_layer.h"
#include "worker/kv/block_table.h"
#include "worker/tensor/large_buffer.h"

namespace terrace {

// INVALID_ARGUMENT, reason invalid_value, names the dtypes there are: kEveryKvDType.
StatusOr<KvDType> ParseKvDType(std::string_view name);

struct KvShape {
  uint32_t layers = 0, kv_heads = 0, head_dim = 0;
  uint32_t block_tokens = 16;
  uint32_t blocks = 0;
  KvDType dtype = KvDType::kF32;
  uint32_t host_blocks = 0;  // of the swap memory

  uint64_t RowBytes() const {  // one position and head: its key or its value, with the scale of int8
    return uint64_t{head_dim} * KvElementBytes(dtype) + (HasScales(dtype) ? sizeof(float) : 0);
  }
  uint64_t BlockBytes() const {  // keys and values of all layers
    return uint64_t{2} * layers * kv_heads * block_tokens * RowBytes();
  }
};

class KvPool {
 public:
  // RESOURCE_EXHAUSTED with needed bytes when the memory cannot be had.
  static StatusOr<std::unique_ptr<KvPool>> Create(const KvShape& shape);

  const KvShape& shape() const { return shape_; }
  // [kv_heads, blocks, block_tokens] rows of keys and as many of values.
  KvLayer layer(uint32_t layer);

  // Positions [0, rows) of a block: all layers and heads. `from` and `to` may not be the same.
  void CopyRows(BlockId from, BlockId to, uint32_t rows);
  // A whole block out of the pool into the swap memory, and back.
  void CopyToHost(BlockId from, uint32_t host_block);
  void CopyFromHost(uint32_t host_block, BlockId to);

 private:
  KvPool(const KvShape& shape, LargeBuffer memory, LargeBuffer host)
      : shape_(shape), memory_(std::move(memory)), host_(std::move(host)) {}
  // Calls visit(first byte of the block, its bytes) for the keys, values and scales of each layer, in a fixed
  // order.
  template <typename Visit>
  void EachPart(BlockId block, Visit visit);

  const KvShape shape_;
  const LargeBuffer memory_;  // [layers, keys and values, rows] scales, then as many rows of data
  const LargeBuffer host_;    // [host_blocks], the parts of each in EachPart's order
};

}  // namespace terrace
