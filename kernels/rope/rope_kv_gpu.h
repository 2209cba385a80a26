// rope_kv.h on a GPU: queries rotated in place, keys rotated and values as they are go to their rows of the
// pool.
#pragma once

#include <cstdint>

#include "kernels/gpu_batch.h"

namespace terrace {

struct GpuRopeKvArgs {
  GpuBatch batch;
  uint16_t* qkv = nullptr;     // [tokens, heads + 2 kv_heads, head_dim] bf16: queries, keys, values
  const float* cos = nullptr;  // [positions of a context, head_dim / 2], by position
  const float* sin = nullptr;
  uint32_t heads = 0;
  bool neighbours = false;
  KvLayer kv;  // not f32
};

// What is done to the heads first, where a model has it; in f32, not rounded before the rotation. Each null:
// none.
struct GpuHeadAdjustments {
  const uint16_t* bias = nullptr;  // [heads + 2 kv_heads, head_dim] bf16
  const float* q_norm = nullptr;   // [head_dim]
  const float* k_norm = nullptr;   // [head_dim]
  float norm_epsilon = 0;

  bool empty() const { return bias == nullptr && q_norm == nullptr && k_norm == nullptr; }
};

}  // namespace terrace
