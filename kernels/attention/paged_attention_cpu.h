// Items [begin, end), an item being one query head of one token: item = (kv_head * tokens + token) * group +
// query head of the group. Key-value heads are the outer index, so that a contiguous share of the items holds
// short and long contexts alike. Neighbours of one sequence go together: a chunk's rows are found once for up
// to kMostQueries of them, and read and converted once for up to kQueryBlock. Each still adds up its own row
// alone. Included once per instruction set, after simd/vec16_*.h.
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
  static Vec16 Load16(const std::byte* from) { return LoadF32(from); }
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
  const float* q = nullptr;
  float* out = nullptr;
  size_t positions = 0;  // it attends to [0, positions)
  float largest = -__builtin_inff();
  float sum = 0;
};

constexpr size_t kSpanChunks = 4, kSpan = kSpanChunks * kAttentionChunk;

// The rows of up to kSpanChunks chunks. The last may be broken.
struct Span {
  size_t count = 0;
  size_t offsets[kSpan];                                     // in bytes, of keys and of values
  alignas(64) float key_scales[kSpan], value_scales[kSpan];  // of scaled rows

  size_t chunks() const { return (count + kAttentionChunk - 1) / kAttentionChunk; }
};

// Finds positions [first, first + count).
template <typename Rows>
inline void FindRows(const PagedAttentionArgs& a, size_t token, size_t kv_head, size_t first, size_t count,
                     Span& span) {
  const size_t block_tokens = a.batch.block_tokens;
  span.count = count;
  for (size_t j = 0; j < count;) {
    const size_t in_block = block_tokens - (first + j) % block_tokens;
    const size_t end = j + in_block < count ? j + in_block : count;
    for (size_t row = a.batch.Row(token, kv_head, first + j); j < end; ++j, ++row) {
      span.offsets[j] = row * a.batch.head_dim * Rows::kBytes;
      if constexpr (Rows::kScaled) {
        span.key_scales[j] = a.kv.keys.scales[row];
        span.value_scales[j] = a.kv.values.scales[row];
      }
    }
  }
  if constexpr (Rows::kScaled) {
    for (size_t j = count; j < span.chunks() * kAttentionChunk; ++j)
      span.key_scales[j] = span.value_scales[j] = 0;
  }
}

// products[i][first + j] = the 16 partial sums of q_i . key_j for j < kKeyBlock; keys from `count` on, to be
// dropped, repeat the last.
template <typename Rows, size_t kQueries>
[[gnu::always_inline]] inline void MultiplyKeys(const PagedAttentionArgs& a, const size_t* offsets,
                                                size_t count, const Query* queries,
                                                Vec16 (&products)[kQueries][16], size_t first) {
  const size_t head_dim = a.batch.head_dim, whole = head_dim / 16 * 16;
  const std::byte* rows[kKeyBlock];
  Vec16 sums[kQueries][kKeyBlock];
#pragma GCC unroll 8
  for (size_t j = 0; j < kKeyBlock; ++j) {
    rows[j] = a.kv.keys.data + offsets[j < count ? j : count - 1];
#pragma GCC unroll 8
    for (size_t i = 0; i < kQueries; ++i) sums[i][j] = Zero();
  }
  const auto add = [&](size_t d, size_t left) {
    Vec16 keys[kKeyBlock];
#pragma GCC unroll 8
    for (size_t j = 0; j < kKeyBlock; ++j) keys[j] = LoadRow<Rows>(rows[j], d, left);
#pragma GCC unroll 8
    for (size_t i = 0; i < kQueries; ++i) {
      const Vec16 q = LoadUpTo16(queries[i].q + d, left);
#pragma GCC unroll 8
      for (size_t j = 0; j < kKeyBlock; ++j) sums[i][j] = Fma(q, keys[j], sums[i][j]);
    }
  };
  for (size_t d = 0; d < whole; d += 16) add(d, 16);
  if (whole < head_dim) add(whole, head_dim - whole);
#pragma GCC unroll 8
  for (size_t i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
    for (size_t j = 0; j < kKeyBlock; ++j) products[i][first + j] = sums[i][j];
  }
}

// weights[i][j] = scale * q_i . key_j; -infinity, which weighs nothing, from the last row to the end of its
// chunk.
template <typename Rows, size_t kQueries>
inline void Scores(const PagedAttentionArgs& a, const Span& span, const Query* queries,
                   float (&weights)[kQueries][kSpan]) {
  for (size_t first = 0; first < span.count; first += 16) {
    Vec16 products[kQueries][16];
    const size_t count = span.count - first < 16 ? span.count - first : 16;
    for (size_t j = 0; j < 16; j += kKeyBlock) {
      if (j < count) {
        MultiplyKeys<Rows>(a, span.offsets + first + j, count - j, queries, products, j);
      } else {
        for (size_t i = 0; i < kQueries; ++i) {
          for (size_t k = j; k < j + kKeyBlock; ++k) products[i][k] = Zero();
        }
      }
    }
    for (size_t i = 0; i < kQueries; ++i) {
      Vec16 dots = SumEach(products[i]);
      if constexpr (Rows::kScaled) dots = Mul(dots, Load(span.key_scales + first));
      Store(weights[i] + first, Mul(dots, Splat(a.scale)));
    }
  }
  for (size_t i = 0; i < kQueries; ++i) {
    for (size_t j = span.count; j < span.chunks() * kAttentionChunk; ++j) weights[i][j] = -__builtin_inff();
  }
}

// Scores to weights, exp(s - largest so far). keep[c] is what the sums before chunk c are still worth after
// it.
template <typename Rows>
inline void Weigh(const Span& span, float (&weights)[kSpan], Query& query, float (&keep)[16]) {
  static_assert(kSpanChunks <= 16);
  alignas(64) float sums[kSpanChunks], falls[16] = {};
  for (size_t c = 0; c < span.chunks(); ++c) {
    float* chunk = weights + c * kAttentionChunk;
    Vec16 chunk_largest = Splat(query.largest);
    for (size_t j = 0; j < kAttentionChunk; j += 16) chunk_largest = Max(chunk_largest, Load(chunk + j));
    const float largest = Largest(chunk_largest);
    Vec16 sum = Zero();
    for (size_t j = 0; j < kAttentionChunk; j += 16) {
      Vec16 weight = Exp(Sub(Load(chunk + j), Splat(largest)));
      sum = Add(sum, weight);
      if constexpr (Rows::kScaled) weight = Mul(weight, Load(span.value_scales + c * kAttentionChunk + j));
      Store(chunk + j, weight);
    }
    sums[c] = Sum(sum);
    falls[c] = query.largest - largest;  // -infinity for the first chunk of all, which keeps nothing
    query.largest = largest;
  }
  Store(keep, Exp(Load(falls)));
  for (size_t c = 0; c < span.chunks(); ++c) query.sum = query.sum * keep[c] + sums[c];
}

// For each chunk: out_i[d] = out_i[d] * keep[i][chunk] + sum_j weights[i][j] * value_j[d], j rising, for 16 *
// kDims elements from d on; with kDims = 1 for those that are left.
template <typename Rows, size_t kQueries, size_t kDims>
inline void AddValues(const PagedAttentionArgs& a, const Span& span, const float (&weights)[kQueries][kSpan],
                      const float (&keep)[kQueries][16], const Query* queries, size_t d) {
  const size_t left = kDims > 1 ? 16 : a.batch.head_dim - d;
  Vec16 sums[kQueries][kDims];
#pragma GCC unroll 8
  for (size_t i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
    for (size_t k = 0; k < kDims; ++k) sums[i][k] = LoadUpTo16(queries[i].out + d + 16 * k, left);
  }
  for (size_t first = 0; first < span.count; first += kAttentionChunk) {
#pragma GCC unroll 8
    for (size_t i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
      for (size_t k = 0; k < kDims; ++k) {
        sums[i][k] = Mul(sums[i][k], Splat(keep[i][first / kAttentionChunk]));
      }
    }
    const size_t end = first + kAttentionChunk < span.count ? first + kAttentionChunk : span.count;
    for (size_t j = first; j < end; ++j) {
      const std::byte* row = a.kv.values.data + span.offsets[j];
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

// Merges the span into kQueries queries.
template <typename Rows, size_t kQueries>
void AttendSpan(const PagedAttentionArgs& a, const Span& span, Query* queries) {
  alignas(64) float weights[kQueries][kSpan], keep[kQueries][16];
  Scores<Rows>(a, span, queries, weights);
  for (size_t i = 0; i < kQueries; ++i) Weigh<Rows>(span, weights[i], queries[i], keep[i]);
  size_t d = 0;
  for (; d + 16 * kDimBlock <= a.batch.head_dim; d += 16 * kDimBlock) {
    AddValues<Rows, kQueries, kDimBlock>(a, span, weights, keep, queries, d);
  }
  for (; d < a.batch.head_dim; d += 16) AddValues<Rows, kQueries, 1>(a, span, weights, keep, queries, d);
}

// `count` queries, 1 to kQueries.
template <typename Rows, size_t kQueries = kQueryBlock>
inline void AttendQueries(const PagedAttentionArgs& a, const Span& span, Query* queries, size_t count) {
  if constexpr (kQueries > 1) {
    if (count < kQueries) return AttendQueries<Rows, kQueries - 1>(a, span, queries, count);
  }
  AttendSpan<Rows, kQueries>(a, span, queries);
}

constexpr size_t kMostQueries = 16;

// Queries of one sequence and key-value head; `token` is one of theirs.
template <typename Rows>
inline void AttendSequence(const PagedAttentionArgs& a, size_t token, size_t kv_head, Query* queries,
                           size_t count) {
  const size_t head_dim = a.batch.head_dim;
  size_t longest = 0, shortest = ~size_t{0};
  for (size_t i = 0; i < count; ++i) {
    if (queries[i].positions > longest) longest = queries[i].positions;
    if (queries[i].positions < shortest) shortest = queries[i].positions;
    for (size_t d = 0; d < head_dim; ++d) queries[i].out[d] = 0;
  }
  // What all have: to the end if it is the same for all, else in whole chunks.
  const size_t common = shortest == longest ? longest : shortest / kAttentionChunk * kAttentionChunk;
  Span span;
  for (size_t first = 0; first < longest;) {
    const size_t limit = first < common ? common : longest, most = first < common ? kSpan : kAttentionChunk;
    const size_t rows = limit - first < most ? limit - first : most;
    FindRows<Rows>(a, token, kv_head, first, rows, span);
    const auto rows_of = [&](const Query& query) -> size_t {
      if (query.positions <= first) return 0;
      return query.positions - first < rows ? query.positions - first : rows;
    };
    for (size_t i = 0, next; i < count; i = next) {
      span.count = rows_of(queries[i]);
      for (next = i + 1; next < count && next < i + kQueryBlock; ++next) {
        if (rows_of(queries[next]) != span.count) break;
      }
      if (span.count > 0) AttendQueries<Rows>(a, span, queries + i, next - i);
    }
    first += rows;
  }
  for (size_t i = 0; i < count; ++i) {
    for (size_t d = 0; d < head_dim; ++d) queries[i].out[d] /= queries[i].sum;
  }
}

template <typename Rows>
inline void AttendItems(const PagedAttentionArgs& a, size_t begin, size_t end) {
  const size_t group = a.heads / a.batch.kv_heads;
  while (begin < end) {
    const size_t kv_head = begin / group / a.batch.tokens, first_token = begin / group % a.batch.tokens;
    Query queries[kMostQueries];
    size_t count = 0;
    for (; count < kMostQueries && begin < end; ++count, ++begin) {
      const size_t token = begin / group % a.batch.tokens;
      if (begin / group / a.batch.tokens != kv_head) break;
      if (a.batch.block_tables[token] != a.batch.block_tables[first_token]) break;
      const size_t row = (token * a.heads + kv_head * group + begin % group) * a.batch.head_dim;
      queries[count] = {
          .q = a.q + row, .out = a.out + row, .positions = size_t{a.batch.positions[token]} + 1};
    }
    AttendSequence<Rows>(a, first_token, kv_head, queries, count);
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
