// paged_attention.h on a GPU.
//
// Two kernels. Decode: each token by itself, its positions in spans of kGpuAttentionSpan that begin at its
// multiples, spans merged in rising order by the block that ends last; so a token's result depends on its own
// position only, whatever else is in the batch. Prefill: tiles of queries of one sequence share what they
// read (Dao, "FlashAttention-2", 2023; on Hopper Shah et al., "FlashAttention-3", 2024); a token's bits are
// not decode's, nor the same on every device, but depend on its own position only, too.
#pragma once

#include <cstdint>

#include "kernels/gpu_batch.h"

namespace terrace {

inline constexpr uint32_t kGpuAttentionSpan = 256;  // positions
inline constexpr uint32_t kGpuQueryTile = 128;      // queries of one head of a prefill tile

// A run of consecutive tokens of one sequence, at consecutive positions.
struct GpuQueryRun {
  uint32_t first = 0, count = 0;  // tokens of the batch, at most kGpuQueryTile
};

struct GpuAttentionArgs {
  GpuBatch batch;
  const uint16_t* q = nullptr;  // [tokens, ..., head_dim] bf16, token t at q + t * q_pitch
  uint32_t q_pitch = 0;         // elements
  uint16_t* out = nullptr;      // [tokens, heads, head_dim] bf16
  KvLayer kv;                   // not f32
  uint32_t heads = 0;           // a multiple of kv_heads
  float scale = 0;
  uint32_t window = 0;  // as in paged_attention.h
  float softcap = 0;
  // Decode: tokens [first, first + count) of the batch.
  uint32_t first = 0, count = 0;
  uint32_t most_spans = 0;      // of any of them: ceil((position + 1) / kGpuAttentionSpan), bounded above
  float* partials = nullptr;    // GpuAttentionPartialFloats()
  uint32_t* arrived = nullptr;  // [count, kv_heads], zeros; left as zeros
  // Decode with RoPE, unless null: behind its queries each row of q has the token's key and value, [heads +
  // 2 kv_heads, head_dim], all as the product left them. What becomes of them is rope_kv_gpu.h's, to the bit,
  // but that queries are not written back.
  const float* cos = nullptr;  // [positions of a context, head_dim / 2], by position
  const float* sin = nullptr;
  bool neighbours = false;
  // Prefill: runs that cover the tokens that are not decoded.
  const GpuQueryRun* runs = nullptr;
  uint32_t run_count = 0;
};

// Of decode with heads of head_dim: most query heads to a kv head, and whether RoPE can be part of it.
constexpr uint32_t GpuMostGroupHeads(uint32_t head_dim) { return head_dim > 128 ? 8 : 16; }
constexpr bool GpuDecodeHasRope(uint32_t head_dim) { return head_dim <= 128; }

// Of `partials`, for a decode of `count` tokens.
constexpr uint64_t GpuAttentionPartialFloats(uint32_t count, uint32_t heads, uint32_t head_dim,
                                             uint32_t most_spans) {
  return uint64_t{count} * heads * most_spans * (head_dim + 2);
}

}  // namespace terrace
