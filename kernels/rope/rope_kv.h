// What lies between a layer's projections and its attention: queries and keys are rotated to their position,
// keys and values go to their rows of the KV cache. Before that, where a model has them, biases are added to
// the projections (Qwen2), and then each head of the queries and of the keys is normalized (Qwen3, Gemma 3):
//   x / sqrt(mean(x^2) + epsilon) * norm, NaN where the squares overflow
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/paged_attention.h"

namespace terrace {

struct RopeKvArgs {
  PagedTokens batch;
  float* q = nullptr;          // [tokens, heads, head_dim], in place
  float* k = nullptr;          // [tokens, kv_heads, head_dim], in place
  float* v = nullptr;          // [tokens, kv_heads, head_dim], in place: only the bias is added
  const float* cos = nullptr;  // [tokens, head_dim / 2]: rope_frequencies.h
  const float* sin = nullptr;  // [tokens, head_dim / 2]
  size_t heads = 0;
  // Pair p is the elements p and p + head_dim / 2; or, with `neighbours`, 2p and 2p + 1.
  bool neighbours = false;
  KvLayer kv;
  // Each null: none.
  const float* q_bias = nullptr;  // [heads, head_dim]
  const float* k_bias = nullptr;  // [kv_heads, head_dim]
  const float* v_bias = nullptr;  // [kv_heads, head_dim]
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;  // [head_dim]
  float norm_epsilon = 0;
};

void RopeKvRef(const RopeKvArgs& args, ThreadPool& pool);

}  // namespace terrace
