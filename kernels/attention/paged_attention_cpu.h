// Items [begin, end), an item being one query head of one token: item = (kv_head * tokens + token) * group +
// query head of the group. Key-value heads are the outer index, so that a contiguous share of the items holds
// short and long contexts alike; neighbours share their rows, which are read and converted once for up to
// kQueryBlock of them. Included once per instruction set, after simd/vec16_*.h.
#pragma once

#include "kernels/attention/paged_attention.h"
#include "kernels/simd/exp.h"

namespace terrace {
namespace {

// The rows of each KvDType: sixteen elements to f32, exactly. Those of int8 want their row's scale, which
// multiplies a whole dot product, or the weight of a whole row, instead of every element.
struct F32Rows {
  static constexpr size_t kBytes = 4;
  static constexpr bool kScaled = false;
  static Vec16 Load16(const std::byte* from) { return Load(reinterpret_cast<const float*>(from)); }
};
struct F16Rows {
  static constexpr size_t kBytes = 2;
  static constexpr bool kScaled = false;
  static Vec16 Load16(const std::byte* from) { return LoadF16(from); }
};
struct BF16Rows {
  static constexpr size_t kBytes = 2;
  static constexpr bool kScaled = false;
  static Vec16 Load16(const std::byte* from) { return LoadBF16(from); }
};
struct Int8Rows {
  static constexpr size_t kBytes = 1;
  static constexpr bool kScaled = true;
  static Vec16 Load16(const std::byte* from) { return LoadI8(from); }
};

inline Vec16 LoadUpTo16(const float* from, size_t left) {
  return left >= 16 ? Load(from) : LoadPartial(from, left);
}

// Elements [d, d + 16) of a row of which `left` are from d on; 0 past its end.
template <typename Rows>
inline Vec16 LoadRow(const std::byte* row, size_t d, size_t left) {
  const std::byte* from = row + d * Rows::kBytes;
  if (left >= 16) return Rows::Load16(from);
  if constexpr (Rows::kBytes == sizeof(float)) {
    return LoadPartial(reinterpret_cast<const float*>(from), left);
  } else {
    std::byte padded[16 * Rows::kBytes] = {};
    __builtin_memcpy(padded, from, left * Rows::kBytes);
    return Rows::Load16(padded);
  }
}

// One query and its softmax so far: sum_j exp(s[j] - largest), with the weighted values beside it in `out`.
struct Query {
  const float* q;
  float* out;
  float largest = -__builtin_inff();
  float sum = 0;
};

// The rows of up to kAttentionChunk positions.
struct Chunk {
  size_t count = 0;
  size_t offsets[kAttentionChunk];  // in bytes, of keys and of values
  alignas(64) float key_scales[kAttentionChunk], value_scales[kAttentionChunk];  // of scaled rows
};

// Finds positions [first, first + count).
template <typename Rows>
inline void FindRows(const PagedAttentionArgs& a, size_t token, size_t kv_head, size_t first, size_t count,
                     Chunk& chunk) {
  const size_t block_tokens = a.batch.block_tokens;
  chunk.count = count;
  for (size_t j = 0; j < count;) {
    const size_t in_block = block_tokens - (first + j) % block_tokens;
    const size_t end = j + in_block < count ? j + in_block : count;
    for (size_t row = a.batch.Row(token, kv_head, first + j); j < end; ++j, ++row) {
      chunk.offsets[j] = row * a.batch.head_dim * Rows::kBytes;
      if constexpr (Rows::kScaled) {
        chunk.key_scales[j] = a.kv.keys.scales[row];
        chunk.value_scales[j] = a.kv.values.scales[row];
      }
    }
  }
  if constexpr (Rows::kScaled) {
    for (size_t j = count; j < kAttentionChunk; ++j) chunk.key_scales[j] = chunk.value_scales[j] = 0;
  }
}

// weights[i][j] = scale * q_i . key_j; -infinity, which weighs nothing, past the end of the chunk.
template <typename Rows, size_t kQueries>
inline void Scores(const PagedAttentionArgs& a, const Chunk& chunk, const Query* queries,
                   float (&weights)[kQueries][kAttentionChunk]) {
  const size_t head_dim = a.batch.head_dim, whole = head_dim / 16 * 16;
  for (size_t first = 0; first < chunk.count; first += 16) {
    Vec16 products[kQueries][16];
    const size_t count = chunk.count - first < 16 ? chunk.count - first : 16;
    for (size_t j = 0; j < count; ++j) {
      const std::byte* row = a.kv.keys.data + chunk.offsets[first + j];
      Vec16 sums[kQueries];
#pragma GCC unroll 8
      for (size_t i = 0; i < kQueries; ++i) sums[i] = Zero();
      for (size_t d = 0; d < whole; d += 16) {
        const Vec16 key = Rows::Load16(row + d * Rows::kBytes);
#pragma GCC unroll 8
        for (size_t i = 0; i < kQueries; ++i) sums[i] = Fma(Load(queries[i].q + d), key, sums[i]);
      }
      if (whole < head_dim) {
        const size_t left = head_dim - whole;
        const Vec16 key = LoadRow<Rows>(row, whole, left);
#pragma GCC unroll 8
        for (size_t i = 0; i < kQueries; ++i) {
          sums[i] = Fma(LoadPartial(queries[i].q + whole, left), key, sums[i]);
        }
      }
#pragma GCC unroll 8
      for (size_t i = 0; i < kQueries; ++i) products[i][j] = sums[i];
    }
    for (size_t i = 0; i < kQueries; ++i) {
      for (size_t j = count; j < 16; ++j) products[i][j] = Zero();
      Vec16 dots = SumEach(products[i]);
      if constexpr (Rows::kScaled) dots = Mul(dots, Load(chunk.key_scales + first));
      Store(weights[i] + first, Mul(dots, Splat(a.scale)));
    }
  }
  for (size_t i = 0; i < kQueries; ++i) {
    for (size_t j = chunk.count; j < kAttentionChunk; ++j) weights[i][j] = -__builtin_inff();
  }
}

// Scores to weights, exp(s - largest). Returns what the earlier chunks' sums are still worth.
template <typename Rows>
inline float Weigh(const Chunk& chunk, float (&weights)[kAttentionChunk], Query& query) {
  Vec16 chunk_largest = Splat(query.largest);
  for (size_t j = 0; j < kAttentionChunk; j += 16) chunk_largest = Max(chunk_largest, Load(weights + j));
  const float largest = Largest(chunk_largest);
  Vec16 sum = Zero();
  for (size_t j = 0; j < kAttentionChunk; j += 16) {
    Vec16 weight = Exp(Sub(Load(weights + j), Splat(largest)));
    sum = Add(sum, weight);
    if constexpr (Rows::kScaled) weight = Mul(weight, Load(chunk.value_scales + j));
    Store(weights + j, weight);
  }
  const float keep = First(Exp(Splat(query.largest - largest)));  // 0 for the first chunk: exp(-infinity)
  query.largest = largest;
  query.sum = query.sum * keep + Sum(sum);
  return keep;
}

// out_i[d] = out_i[d] * keep[i] + sum_j weights[i][j] * value_j[d], j rising, for 16 * kDims elements from d
// on; with kDims = 1 for those that are left.
template <typename Rows, size_t kQueries, size_t kDims>
inline void AddValues(const PagedAttentionArgs& a, const Chunk& chunk,
                      const float (&weights)[kQueries][kAttentionChunk], const float (&keep)[kQueries],
                      const Query* queries, size_t d) {
  const size_t left = kDims > 1 ? 16 : a.batch.head_dim - d;
  Vec16 sums[kQueries][kDims];
#pragma GCC unroll 8
  for (size_t i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
    for (size_t k = 0; k < kDims; ++k) {
      sums[i][k] = Mul(LoadUpTo16(queries[i].out + d + 16 * k, left), Splat(keep[i]));
    }
  }
  for (size_t j = 0; j < chunk.count; ++j) {
    const std::byte* row = a.kv.values.data + chunk.offsets[j];
    Vec16 values[kDims];
#pragma GCC unroll 8
    for (size_t k = 0; k < kDims; ++k) values[k] = LoadRow<Rows>(row, d + 16 * k, left);
#pragma GCC unroll 8
    for (size_t i = 0; i < kQueries; ++i) {
      const Vec16 weight = Splat(weights[i][j]);
#pragma GCC unroll 8
      for (size_t k = 0; k < kDims; ++k) sums[i][k] = Fma(weight, values[k], sums[i][k]);
    }
  }
#pragma GCC unroll 8
  for (size_t i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
    for (size_t k = 0; k < kDims; ++k) {
      float* out = queries[i].out + d + 16 * k;
      left >= 16 ? Store(out, sums[i][k]) : StorePartial(out, left, sums[i][k]);
    }
  }
}

// Merges the chunk into kQueries queries.
template <typename Rows, size_t kQueries>
void AttendChunk(const PagedAttentionArgs& a, const Chunk& chunk, Query* queries) {
  alignas(64) float weights[kQueries][kAttentionChunk];
  Scores<Rows>(a, chunk, queries, weights);
  float keep[kQueries];
  for (size_t i = 0; i < kQueries; ++i) keep[i] = Weigh<Rows>(chunk, weights[i], queries[i]);
  size_t d = 0;
  for (; d + 16 * kDimBlock <= a.batch.head_dim; d += 16 * kDimBlock) {
    AddValues<Rows, kQueries, kDimBlock>(a, chunk, weights, keep, queries, d);
  }
  for (; d < a.batch.head_dim; d += 16) AddValues<Rows, kQueries, 1>(a, chunk, weights, keep, queries, d);
}

template <typename Rows>
inline void AttendQueries(const PagedAttentionArgs& a, const Chunk& chunk, Query* queries, size_t count) {
  static_assert(kQueryBlock <= 4);
  switch (count) {
    case 1:
      return AttendChunk<Rows, 1>(a, chunk, queries);
    case 2:
      return AttendChunk<Rows, 2>(a, chunk, queries);
    case 3:
      return AttendChunk<Rows, 3>(a, chunk, queries);
    case 4:
      return AttendChunk<Rows, 4>(a, chunk, queries);
  }
}

// Query heads [head, head + count) of one token, all of one key-value head; count <= kMostQueries.
constexpr size_t kMostQueries = 16;

template <typename Rows>
inline void AttendHeads(const PagedAttentionArgs& a, size_t token, size_t head, size_t count) {
  const size_t head_dim = a.batch.head_dim, kv_head = head / (a.heads / a.batch.kv_heads);
  const size_t positions = size_t{a.batch.positions[token]} + 1;
  Query queries[kMostQueries];
  for (size_t i = 0; i < count; ++i) {
    const size_t row = (token * a.heads + head + i) * head_dim;
    queries[i] = {.q = a.q + row, .out = a.out + row};
    for (size_t d = 0; d < head_dim; ++d) queries[i].out[d] = 0;
  }
  Chunk chunk;
  for (size_t first = 0; first < positions; first += kAttentionChunk) {
    const size_t rows = positions - first < kAttentionChunk ? positions - first : kAttentionChunk;
    FindRows<Rows>(a, token, kv_head, first, rows, chunk);
    for (size_t i = 0; i < count; i += kQueryBlock) {
      AttendQueries<Rows>(a, chunk, queries + i, count - i < kQueryBlock ? count - i : kQueryBlock);
    }
  }
  for (size_t i = 0; i < count; ++i) {
    for (size_t d = 0; d < head_dim; ++d) queries[i].out[d] /= queries[i].sum;
  }
}

template <typename Rows>
inline void AttendItems(const PagedAttentionArgs& a, size_t begin, size_t end) {
  const size_t group = a.heads / a.batch.kv_heads;
  while (begin < end) {
    const size_t kv_head = begin / group / a.batch.tokens, token = begin / group % a.batch.tokens;
    size_t count = group - begin % group;  // to the end of the group
    if (count > end - begin) count = end - begin;
    if (count > kMostQueries) count = kMostQueries;
    AttendHeads<Rows>(a, token, kv_head * group + begin % group, count);
    begin += count;
  }
}

inline void PagedAttentionItems(const PagedAttentionArgs& a, size_t begin, size_t end) {
  switch (a.kv.dtype) {
    case KvDType::kF32:
      return AttendItems<F32Rows>(a, begin, end);
    case KvDType::kF16:
      return AttendItems<F16Rows>(a, begin, end);
    case KvDType::kBF16:
      return AttendItems<BF16Rows>(a, begin, end);
    case KvDType::kInt8:
      return AttendItems<Int8Rows>(a, begin, end);
  }
}

}  // namespace
}  // namespace terrace
