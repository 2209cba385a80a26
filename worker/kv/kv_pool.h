// The memory of the KV cache of one rank: f32 keys and values, per layer [blocks, kv_heads, block_tokens,
// head_dim]. Owned by the ModelRunner and written by its thread only. Rows of blocks that were never written
// hold anything: attention reads a position only after its step wrote it.
#pragma once

#include <cstdint>
#include <memory>

#include "base/status.h"

namespace terrace {

struct KvShape {
  uint32_t layers = 0, kv_heads = 0, head_dim = 0;
  uint32_t block_tokens = 16;
  uint32_t blocks = 0;

  uint64_t BlockBytes() const {  // keys and values of all layers
    return uint64_t{2} * layers * kv_heads * head_dim * block_tokens * sizeof(float);
  }
};

class KvPool {
 public:
  // RESOURCE_EXHAUSTED with needed bytes when the memory cannot be had.
  static StatusOr<std::unique_ptr<KvPool>> Create(const KvShape& shape);

  const KvShape& shape() const { return shape_; }
  float* keys(uint32_t layer) { return memory_.get() + LayerFloats() * 2 * layer; }
  float* values(uint32_t layer) { return keys(layer) + LayerFloats(); }

 private:
  KvPool(const KvShape& shape, std::unique_ptr<float[]> memory) : shape_(shape), memory_(std::move(memory)) {}
  uint64_t LayerFloats() const {
    return uint64_t{shape_.blocks} * shape_.kv_heads * shape_.block_tokens * shape_.head_dim;
  }
  const KvShape shape_;
  std::unique_ptr<float[]> memory_;
};

}  // namespace terrace
