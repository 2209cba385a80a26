// Items [begin, end), an item being one key-value head of one token: item = kv_head * tokens + token. Heads
// are the outer index, so that a contiguous share of the items holds short and long contexts alike. Included
// once per instruction set, after simd/vec16_*.h.
#pragma once

#include "kernels/attention/paged_attention.h"
#include "kernels/simd/exp.h"

namespace terrace {
namespace {

inline Vec16 LoadUpTo16(const float* from, size_t left) {
  return left >= 16 ? Load(from) : LoadPartial(from, left);
}

inline float Dot(const float* a, const float* b, size_t count) {
  Vec16 sum = Zero();
  for (size_t i = 0; i < count; i += 16)
    sum = Fma(LoadUpTo16(a + i, count - i), LoadUpTo16(b + i, count - i), sum);
  return Sum(sum);
}

// out[d] = out[d] * keep + sum_j weights[j] * values[offsets[j]][d], j rising, for d in [0, head_dim).
inline void AddValues(const float* values, const size_t* offsets, const float* weights, size_t count,
                      float keep, float* out, size_t head_dim) {
  for (size_t d = 0; d < head_dim; d += 16) {
    const size_t left = head_dim - d;
    Vec16 sum = Mul(LoadUpTo16(out + d, left), Splat(keep));
    if (left >= 16) {
      for (size_t j = 0; j < count; ++j) sum = Fma(Splat(weights[j]), Load(values + offsets[j] + d), sum);
      Store(out + d, sum);
    } else {
      for (size_t j = 0; j < count; ++j) {
        sum = Fma(Splat(weights[j]), LoadPartial(values + offsets[j] + d, left), sum);
      }
      StorePartial(out + d, left, sum);
    }
  }
}

// The softmax so far of one query: sum_j exp(s[j] - largest), with the weighted values beside it in `out`.
struct RunningSoftmax {
  float largest = -__builtin_inff();
  float sum = 0;
};

// Merges the chunk whose `count` rows lie at `offsets` of the pools.
inline void AttendChunk(const PagedAttentionArgs& a, const float* q, const size_t* offsets, size_t count,
                        RunningSoftmax& softmax, float* out) {
  const size_t head_dim = a.batch.head_dim;
  alignas(64) float weights[kAttentionChunk];
  for (size_t j = 0; j < count; ++j) weights[j] = Dot(q, a.key_pool + offsets[j], head_dim) * a.scale;
  for (size_t j = count; j < kAttentionChunk; ++j) weights[j] = -__builtin_inff();  // weigh nothing

  Vec16 chunk_largest = Splat(softmax.largest);
  for (size_t j = 0; j < kAttentionChunk; j += 16) chunk_largest = Max(chunk_largest, Load(weights + j));
  const float largest = Largest(chunk_largest);
  Vec16 sum = Zero();
  for (size_t j = 0; j < kAttentionChunk; j += 16) {
    const Vec16 weight = Exp(Sub(Load(weights + j), Splat(largest)));
    Store(weights + j, weight);
    sum = Add(sum, weight);
  }
  const float keep = First(Exp(Splat(softmax.largest - largest)));  // 0 for the first chunk: exp(-infinity)
  AddValues(a.value_pool, offsets, weights, count, keep, out, head_dim);
  softmax = {.largest = largest, .sum = softmax.sum * keep + Sum(sum)};
}

// Offsets in the pools of positions [first, first + count).
inline void FindRows(const PagedTokens& batch, size_t token, size_t kv_head, size_t first, size_t count,
                     size_t* offsets) {
  size_t left_in_block = 0;
  for (size_t j = 0; j < count; ++j, --left_in_block) {
    if (left_in_block == 0) {
      offsets[j] = batch.RowOffset(token, kv_head, first + j);
      left_in_block = batch.block_tokens - (first + j) % batch.block_tokens;
    } else {
      offsets[j] = offsets[j - 1] + batch.head_dim;
    }
  }
}

// One token, the query heads of one key-value head.
inline void AttendGroup(const PagedAttentionArgs& a, size_t token, size_t kv_head) {
  const size_t head_dim = a.batch.head_dim, group = a.heads / a.batch.kv_heads;
  const size_t positions = size_t{a.batch.positions[token]} + 1;
  for (size_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const float* q = a.q + (token * a.heads + head) * head_dim;
    float* out = a.out + (token * a.heads + head) * head_dim;
    for (size_t d = 0; d < head_dim; ++d) out[d] = 0;
    RunningSoftmax softmax;
    for (size_t first = 0; first < positions; first += kAttentionChunk) {
      const size_t count = positions - first < kAttentionChunk ? positions - first : kAttentionChunk;
      size_t offsets[kAttentionChunk];
      FindRows(a.batch, token, kv_head, first, count, offsets);
      AttendChunk(a, q, offsets, count, softmax, out);
    }
    for (size_t d = 0; d < head_dim; ++d) out[d] /= softmax.sum;
  }
}

inline void PagedAttentionItems(const PagedAttentionArgs& a, size_t begin, size_t end) {
  for (size_t item = begin; item < end; ++item) AttendGroup(a, item % a.batch.tokens, item / a.batch.tokens);
}

}  // namespace
}  // namespace terrace
