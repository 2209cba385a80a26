// Causal attention of a batch of query tokens to keys and values in blocks of a pool (Kwon et al., "Efficient
// Memory Management for Large Language Model Serving with PagedAttention", 2023), with grouped heads: query
// head h reads key-value head h / (heads / kv_heads).
//   s[j] = scale * q . key[j],  out = sum_j softmax(s)[j] * value[j],  j over positions 0 to the token's own
// or, with a window (Beltagy et al., "Longformer", 2020), over the last `window` of these: what is before it
// may hold anything, and its blocks be another's. Scores may be capped (Gemma Team, "Gemma 2", 2024).
// Position j of a sequence lies in block block_table[j / block_tokens], row j % block_tokens.
//
// Same bits: positions are taken in spans of kAttentionSpan that begin at its multiples, whatever the block
// size. A span's softmax is relative to its own largest score, and spans are merged in rising order with a
// running maximum (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018), the first
// being the one that the token's window begins in. So the result of a token depends on its own position only,
// not on how its prompt was cut nor on who computes which span. A query whose scores overflow f32 gets NaN,
// or what its other spans say; a capped one is at the cap there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/kv_layer.h"

namespace terrace {

class ThreadPool;

inline constexpr size_t kAttentionSpan = 256;  // positions

// Where the keys and values of a batch's tokens live.
struct PagedTokens {
  const uint32_t* positions = nullptr;           // [tokens]
  const int32_t* const* block_tables = nullptr;  // [tokens]: each token's sequence's
  size_t tokens = 0;
  size_t kv_heads = 0, head_dim = 0;
  size_t blocks = 0, block_tokens = 0;  // of the pool

  // The row of position `position` of head `kv_head` of token `token`'s sequence.
  size_t Row(size_t token, size_t kv_head, size_t position) const {
    const auto block = static_cast<size_t>(block_tables[token][position / block_tokens]);
    return (kv_head * blocks + block) * block_tokens + position % block_tokens;
  }
};

// Each token's keys and values, to their rows in the layer's dtype.
struct WriteKvArgs {
  PagedTokens batch;
  const float* keys = nullptr;    // [tokens, kv_heads, head_dim]
  const float* values = nullptr;  // [tokens, kv_heads, head_dim]
  KvLayer kv;
};

struct PagedAttentionArgs {
  PagedTokens batch;
  const float* q = nullptr;  // [tokens, heads, head_dim]
  float* out = nullptr;      // [tokens, heads, head_dim]; not q
  KvLayer kv;                // read only
  size_t heads = 0;
  float scale = 0;
  uint32_t window =
      0;              // a token attends to so many positions at most, its own and those before it; 0: to all
  float softcap = 0;  // scores become softcap * tanh(s / softcap); 0: they stay

  // The first position that a token at `position` attends to.
  size_t WindowBegin(size_t position) const {
    return window == 0 || position < window ? 0 : position + 1 - window;
  }
};

// What kv_layer.h says, element by element.
void WriteKv(const WriteKvArgs& args);
void PagedAttentionRef(const PagedAttentionArgs& args, ThreadPool& pool);

}  // namespace terrace
