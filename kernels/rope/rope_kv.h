// What lies between a layer's projections and its attention: queries and keys are rotated to their position,
// keys and values go to their rows of the KV cache.
//
// Rotary position embedding (Su et al., "RoFormer", 2021): pair p of a head at position m is rotated by the
// angle m * base^(-2p / head_dim).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/paged_attention.h"

namespace terrace {

struct RopeKvArgs {
  PagedTokens batch;
  float* q = nullptr;          // [tokens, heads, head_dim], rotated in place
  float* k = nullptr;          // [tokens, kv_heads, head_dim], rotated in place
  const float* v = nullptr;    // [tokens, kv_heads, head_dim]
  const float* cos = nullptr;  // [tokens, head_dim / 2]
  const float* sin = nullptr;  // [tokens, head_dim / 2]
  size_t heads = 0;
  // Pair p is the elements p and p + head_dim / 2; or, with `neighbours`, 2p and 2p + 1.
  bool neighbours = false;
  KvLayer kv;
};

// Fills cos and sin, [tokens, head_dim / 2], for one position per token. Angles are computed in double (a
// position below 2^24 times an f32 angle step would be off by up to a radian) and only their cosine and sine
// are rounded: a pure function of the position, whatever the batch.
void RopeAngles(const uint32_t* positions, size_t tokens, double base, size_t head_dim, float* cos,
                float* sin);

void RopeKvRef(const RopeKvArgs& args, ThreadPool& pool);

}  // namespace terrace
