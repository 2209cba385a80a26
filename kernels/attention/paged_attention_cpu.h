// A run of queries (attention_runs.h) over one span of positions. The span's rows are found once for all of
// them, and read and converted once for up to kQueryBlock. Each query still adds up its own row alone: which
// others are with it does not change a bit. Included once per instruction set, after simd/vec16_*.h.
#pragma once

#include "kernels/attention/attention_runs.h"
#include "kernels/simd/exp.h"
#include "kernels/simd/inlining.h"
#include "kernels/simd/tanh.h"

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
struct Fp8Rows {
  static constexpr size_t kBytes = 1;
  static constexpr bool kScaled = false;
  static Vec16 Load16(const std::byte* from) { return LoadE4M3(from); }
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

struct Query {
  const float* q;
  float* out;         // of this span
  size_t begin, end;  // the rows that it attends to
};

// The rows of a span that its queries attend to.
struct Span {
  size_t begin = 0, end = 0;
  size_t ahead = 0;  // rows from asking to using; 0 once they are in the cache
  // In bytes, of keys and of values. To a whole vector before the first row, that row's.
  size_t offsets[kAttentionSpan];
  // Of scaled rows; 0 to whole vectors.
  alignas(64) float key_scales[kAttentionSpan], value_scales[kAttentionSpan];
};

inline size_t WholeVectors(size_t count) { return (count + 15) / 16 * 16; }
inline size_t VectorOf(size_t row) { return row / 16 * 16; }

// Rows lie in blocks anywhere in memory, which the processor cannot guess: they are asked for before they are
// used.
template <typename Rows>
inline size_t RowsAhead(size_t head_dim) {
  const size_t rows = kAttentionAhead / (head_dim * Rows::kBytes);
  return rows < 4 ? 4 : rows > 64 ? 64 : rows;
}

template <typename Rows>
inline void PrefetchRow(const KvRows& rows, const Span& span, size_t j, size_t head_dim) {
  const std::byte* row = rows.data + span.offsets[j];
  for (size_t byte = 0; byte < head_dim * Rows::kBytes; byte += 64) Prefetch(row + byte);
}

// Before key j: a later one or, behind the last, a value.
template <typename Rows>
inline void PrefetchBehindKey(const PagedAttentionArgs& a, const Span& span, size_t j) {
  if (span.ahead == 0) return;
  const size_t next = j + span.ahead;
  if (next < span.end) return PrefetchRow<Rows>(a.kv.keys, span, next, a.batch.head_dim);
  const size_t value = next - span.end + span.begin;
  if (value < span.end) PrefetchRow<Rows>(a.kv.values, span, value, a.batch.head_dim);
}

// Finds rows [begin, end) of the span whose first position is `first`.
template <typename Rows>
inline void FindRows(const PagedAttentionArgs& a, size_t token, size_t kv_head, size_t first, size_t begin,
                     size_t end, Span& span) {
  const size_t block_tokens = a.batch.block_tokens;
  span.begin = begin;
  span.end = end;
  span.ahead = RowsAhead<Rows>(a.batch.head_dim);
  for (size_t j = begin; j < end;) {
    const size_t in_block = block_tokens - (first + j) % block_tokens;
    const size_t last = j + in_block < end ? j + in_block : end;
    for (size_t row = a.batch.Row(token, kv_head, first + j); j < last; ++j, ++row) {
      span.offsets[j] = row * a.batch.head_dim * Rows::kBytes;
      if (j < begin + span.ahead) PrefetchRow<Rows>(a.kv.keys, span, j, a.batch.head_dim);
      if constexpr (Rows::kScaled) {
        span.key_scales[j] = a.kv.keys.scales[row];
        span.value_scales[j] = a.kv.values.scales[row];
      }
    }
  }
  for (size_t j = VectorOf(begin); j < begin; ++j) span.offsets[j] = span.offsets[begin];
  if constexpr (Rows::kScaled) {
    for (size_t j = VectorOf(begin); j < begin; ++j) span.key_scales[j] = span.value_scales[j] = 0;
    for (size_t j = end; j < WholeVectors(end); ++j) span.key_scales[j] = span.value_scales[j] = 0;
  }
}

// Keys that are multiplied at once lie so many rows apart: those that FoldFour takes together.
constexpr size_t kKeyStride = 4;

// sums[i][k] = the 16 partial sums of q_i and key first + kKeyStride * k; of keys from `count` on, which are
// to be dropped, the last one's.
template <typename Rows, size_t kQueries>
TERRACE_INLINE inline void MultiplyKeys(const PagedAttentionArgs& a, const size_t* offsets, size_t first,
                                        size_t count, const Query* queries,
                                        Vec16 (&sums)[kQueries][kKeyBlock]) {
  const size_t head_dim = a.batch.head_dim, whole = head_dim / 16 * 16;
  const std::byte* rows[kKeyBlock];
  TERRACE_UNROLL(8)
  for (size_t j = 0; j < kKeyBlock; ++j) {
    const size_t row = first + kKeyStride * j;
    rows[j] = a.kv.keys.data + offsets[row < count ? row : count - 1];
    TERRACE_UNROLL(8)
    for (size_t i = 0; i < kQueries; ++i) sums[i][j] = Zero();
  }
  const auto add = [&](size_t d, size_t left) {
    Vec16 keys[kKeyBlock];
    TERRACE_UNROLL(8)
    for (size_t j = 0; j < kKeyBlock; ++j) keys[j] = LoadRow<Rows>(rows[j], d, left);
    TERRACE_UNROLL(8)
    for (size_t i = 0; i < kQueries; ++i) {
      const Vec16 q = LoadUpTo16(queries[i].q + d, left);
      TERRACE_UNROLL(8)
      for (size_t j = 0; j < kKeyBlock; ++j) sums[i][j] = Fma(q, keys[j], sums[i][j]);
    }
  };
  for (size_t d = 0; d < whole; d += 16) add(d, 16);
  if (whole < head_dim) add(whole, head_dim - whole);
}

// folds[f][i] = FoldFour of the sums of q_i and keys f, f + 4, f + 8 and f + 12 of the span's from `first`
// on.
template <typename Rows, size_t kQueries>
TERRACE_INLINE inline void FoldKeys(const PagedAttentionArgs& a, const Span& span, size_t first, size_t count,
                                    const Query* queries, Vec16 (&folds)[4][kQueries]) {
  static_assert(kKeyBlock == 1 || kKeyBlock == 4);
  const size_t* offsets = span.offsets + first;
  if constexpr (kKeyBlock == 4) {  // folded in registers
    for (size_t f = 0; f < 4; ++f) {
      for (size_t j = 4 * f; j < 4 * f + 4; ++j) PrefetchBehindKey<Rows>(a, span, first + j);
      Vec16 sums[kQueries][kKeyBlock];
      MultiplyKeys<Rows>(a, offsets, f, count, queries, sums);
      TERRACE_UNROLL(8)
      for (size_t i = 0; i < kQueries; ++i)
        folds[f][i] = FoldFour(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
    }
  } else {  // one key after the other, as they lie in memory
    Vec16 products[kQueries][16];
    for (size_t j = 0; j < 16; ++j) {
      Vec16 sums[kQueries][kKeyBlock];
      PrefetchBehindKey<Rows>(a, span, first + j);
      MultiplyKeys<Rows>(a, offsets, j, count, queries, sums);
      TERRACE_UNROLL(8)
      for (size_t i = 0; i < kQueries; ++i) products[i][j] = sums[i][0];
    }
    for (size_t f = 0; f < 4; ++f) {
      for (size_t i = 0; i < kQueries; ++i) {
        const Vec16* of = products[i] + f;
        folds[f][i] = FoldFour(of[0], of[4], of[8], of[12]);
      }
    }
  }
}

// scores[i][j] = scale * q_i . key_j for rows j of [begin, end); what is around them, to whole vectors, is
// anything.
template <typename Rows, size_t kQueries>
inline void Scores(const PagedAttentionArgs& a, const Span& span, size_t begin, size_t end,
                   const Query* queries, float (&scores)[kQueries][kAttentionSpan]) {
  for (size_t first = VectorOf(begin); first < end; first += 16) {
    Vec16 folds[4][kQueries];
    FoldKeys<Rows>(a, span, first, end - first, queries, folds);
    TERRACE_UNROLL(8)
    for (size_t i = 0; i < kQueries; ++i) {
      Vec16 dots = SumFolds(folds[0][i], folds[1][i], folds[2][i], folds[3][i]);
      if constexpr (Rows::kScaled) dots = Mul(dots, Load(span.key_scales + first));
      Store(scores[i] + first, Mul(dots, Splat(a.scale)));
    }
  }
}

// Caps the scores of rows [begin, end), and what is around them to whole vectors. Off by at most 4.2e-7 of
// the cap: 3e-7 of Tanh, two roundings of x, whose weight x / cosh(x)^2 is at most 0.45, and one of the
// product.
inline void CapScores(float softcap, size_t begin, size_t end, float (&scores)[kAttentionSpan]) {
  const Vec16 cap = Splat(softcap), inverse = Splat(1 / softcap);
  for (size_t j = VectorOf(begin); j < end; j += 16) {
    Store(scores + j, Mul(cap, Tanh(Mul(Load(scores + j), inverse))));
  }
}

// Makes the scores of the query's rows weights, exp(s - largest), in place; gives the largest and the
// weights' sum.
template <typename Rows>
inline void Weigh(const Span& span, const Query& query, float (&weights)[kAttentionSpan], float& largest,
                  float& sum) {
  const size_t begin = VectorOf(query.begin), end = WholeVectors(query.end);
  // What weighs nothing.
  for (size_t j = begin; j < query.begin; ++j) weights[j] = -__builtin_inff();
  for (size_t j = query.end; j < end; ++j) weights[j] = -__builtin_inff();
  Vec16 most = Splat(-__builtin_inff());
  for (size_t j = begin; j < end; j += 16) most = Max(most, Load(weights + j));
  largest = Largest(most);
  Vec16 sums = Zero();
  for (size_t j = begin; j < end; j += 16) {
    Vec16 weight = Exp(Sub(Load(weights + j), Splat(largest)));
    sums = Add(sums, weight);
    if constexpr (Rows::kScaled) weight = Mul(weight, Load(span.value_scales + j));
    Store(weights + j, weight);
  }
  sum = Sum(sums);
}

// out_i[d] += sum_j weights[i][j] * value_j[d] for rows j of [begin, end), rising, for 16 * kDims elements
// from d on; with kDims = 1 for those that are left. Asks for rows `ahead` of its own, if not 0.
template <typename Rows, size_t kQueries, size_t kDims>
inline void AddValuesAt(const PagedAttentionArgs& a, const Span& span, size_t begin, size_t end,
                        const float (*weights)[kAttentionSpan], const Query* queries, size_t d,
                        size_t ahead) {
  const size_t left = kDims > 1 ? 16 : a.batch.head_dim - d;
  Vec16 sums[kQueries][kDims];
  TERRACE_UNROLL(8)
  for (size_t i = 0; i < kQueries; ++i) {
    TERRACE_UNROLL(8)
    for (size_t k = 0; k < kDims; ++k) sums[i][k] = Load(queries[i].out + d + 16 * k);
  }
  for (size_t j = begin; j < end; ++j) {
    if (ahead > 0 && j + ahead < end) PrefetchRow<Rows>(a.kv.values, span, j + ahead, a.batch.head_dim);
    const std::byte* row = a.kv.values.data + span.offsets[j];
    Vec16 values[kDims];
    TERRACE_UNROLL(8)
    for (size_t k = 0; k < kDims; ++k) values[k] = LoadRow<Rows>(row, d + 16 * k, left);
    TERRACE_UNROLL(8)
    for (size_t i = 0; i < kQueries; ++i) {
      const Vec16 weight = Splat(weights[i][j]);
      TERRACE_UNROLL(8)
      for (size_t k = 0; k < kDims; ++k) sums[i][k] = Fma(weight, values[k], sums[i][k]);
    }
  }
  TERRACE_UNROLL(8)
  for (size_t i = 0; i < kQueries; ++i) {
    TERRACE_UNROLL(8)
    for (size_t k = 0; k < kDims; ++k) Store(queries[i].out + d + 16 * k, sums[i][k]);
  }
}

// All rows at once where sums of whole rows fit the registers; else a few at a time, which stay in the first
// cache while the next ones come.
template <typename Rows, size_t kQueries>
inline void AddValues(const PagedAttentionArgs& a, const Span& span, size_t begin, size_t end,
                      const float (*weights)[kAttentionSpan], const Query* queries) {
  if (a.batch.head_dim == 16 * kDimBlock) {
    return AddValuesAt<Rows, kQueries, kDimBlock>(a, span, begin, end, weights, queries, 0, span.ahead);
  }
  const size_t rows = span.ahead;
  for (size_t first = begin, last; first < end; first = last) {
    last = rows == 0 || end - first < 2 * rows ? end : first + rows;
    for (size_t j = last; j < last + rows && j < end; ++j) {
      PrefetchRow<Rows>(a.kv.values, span, j, a.batch.head_dim);
    }
    size_t d = 0;
    for (; d + 16 * kDimBlock <= a.batch.head_dim; d += 16 * kDimBlock) {
      AddValuesAt<Rows, kQueries, kDimBlock>(a, span, first, last, weights, queries, d, 0);
    }
    for (; d < a.batch.head_dim; d += 16) {
      AddValuesAt<Rows, kQueries, 1>(a, span, first, last, weights, queries, d, 0);
    }
  }
}

// Fills the partials of kQueries queries whose rows begin together.
template <typename Rows, size_t kQueries>
void AttendBlock(const PagedAttentionArgs& a, const Span& span, const Query* queries) {
  const size_t begin = queries[0].begin;
  size_t least = queries[0].end, most = least;
  for (size_t i = 1; i < kQueries; ++i) {
    if (queries[i].end < least) least = queries[i].end;
    if (queries[i].end > most) most = queries[i].end;
  }
  alignas(64) float weights[kQueries][kAttentionSpan];
  Scores<Rows>(a, span, begin, most, queries, weights);
  const AttentionPartial partial{a.batch.head_dim};
  for (size_t i = 0; i < kQueries; ++i) {
    float* out = queries[i].out;
    if (a.softcap != 0) CapScores(a.softcap, begin, queries[i].end, weights[i]);
    Weigh<Rows>(span, queries[i], weights[i], out[partial.largest()], out[partial.sum()]);
    for (size_t d = 0; d < partial.largest(); d += 16) Store(out + d, Zero());
  }
  AddValues<Rows, kQueries>(a, span, begin, least, weights, queries);
  for (size_t i = 0; i < kQueries; ++i) {
    if (queries[i].end > least) {
      AddValues<Rows, 1>(a, span, least, queries[i].end, weights + i, queries + i);
    }
  }
}

// `count` queries, 1 to kQueries.
template <typename Rows, size_t kQueries = kQueryBlock>
inline void AttendQueries(const PagedAttentionArgs& a, const Span& span, const Query* queries, size_t count) {
  if constexpr (kQueries > 1) {
    if (count < kQueries) return AttendQueries<Rows, kQueries - 1>(a, span, queries, count);
  }
  AttendBlock<Rows, kQueries>(a, span, queries);
}

struct QueryPlace {
  size_t row;         // of q and of out: its first element
  size_t begin, end;  // the positions that it attends to

  bool AttendsTo(size_t span) const {
    return begin < (span + 1) * kAttentionSpan && end > span * kAttentionSpan;
  }
};

inline void FindQueries(const PagedAttentionArgs& a, const AttentionRun& run,
                        QueryPlace (&places)[AttentionRun::kMostQueries]) {
  const size_t group = a.heads / a.batch.kv_heads;
  size_t token = run.first / group, head = run.first % group;
  for (size_t i = 0; i < run.count; ++i) {
    const size_t position = a.batch.positions[token];
    places[i] = {.row = (token * a.heads + run.kv_head * group + head) * a.batch.head_dim,
                 .begin = a.WindowBegin(position),
                 .end = position + 1};
    if (++head == group) head = 0, ++token;
  }
}

template <typename Rows>
inline void AttendRun(const PagedAttentionArgs& a, const AttentionRun& run, size_t span_index,
                      float* partials) {
  const size_t first = span_index * kAttentionSpan, pitch = AttentionPartial{a.batch.head_dim}.pitch();
  QueryPlace places[AttentionRun::kMostQueries];
  FindQueries(a, run, places);
  Query queries[AttentionRun::kMostQueries];
  size_t count = 0, begin = kAttentionSpan, end = 0;
  for (size_t i = 0; i < run.count; ++i) {
    if (!places[i].AttendsTo(span_index)) continue;
    const size_t left = places[i].end - first;
    Query& query = queries[count++];
    query = {.q = a.q + places[i].row,
             .out = partials + i * pitch,
             .begin = places[i].begin < first ? 0 : places[i].begin - first,
             .end = left < kAttentionSpan ? left : kAttentionSpan};
    if (query.begin < begin) begin = query.begin;
    if (query.end > end) end = query.end;
  }
  if (count == 0) return;
  Span span;
  FindRows<Rows>(a, run.first / (a.heads / a.batch.kv_heads), run.kv_head, first, begin, end, span);
  for (size_t i = 0, next; i < count; i = next) {
    for (next = i + 1; next < count && next < i + kQueryBlock; ++next) {
      if (queries[next].begin != queries[i].begin) break;
    }
    AttendQueries<Rows>(a, span, queries + i, next - i);
    span.ahead = 0;
  }
}

// Fills the partials of the queries that attend to the span.
inline void AttendSpan(const PagedAttentionArgs& a, const AttentionRun& run, size_t span, float* partials) {
  switch (a.kv.dtype) {
    case KvDType::kF32:
      return AttendRun<F32Rows>(a, run, span, partials);
    case KvDType::kF16:
      return AttendRun<F16Rows>(a, run, span, partials);
    case KvDType::kBF16:
      return AttendRun<BF16Rows>(a, run, span, partials);
    case KvDType::kInt8:
      return AttendRun<Int8Rows>(a, run, span, partials);
    case KvDType::kFp8:
      return AttendRun<Fp8Rows>(a, run, span, partials);
  }
}

// Merges the partials of spans [begin, end), the run's next, into `totals` and a.out; with the last span that
// a query attends to, a.out is its result.
inline void MergeSpans(const PagedAttentionArgs& a, const AttentionRun& run, size_t begin, size_t end,
                       const float* partials, AttentionTotals& totals) {
  static_assert(AttentionRun::kMostQueries == 16);
  const AttentionPartial partial{a.batch.head_dim};
  QueryPlace places[16];
  FindQueries(a, run, places);
  alignas(64) float largest[16] = {}, sums[16] = {}, keep[16], add[16];
  for (size_t span = begin; span < end; ++span, partials += run.count * partial.pitch()) {
    const auto is_first = [&](size_t i) { return places[i].begin >= span * kAttentionSpan; };
    for (size_t i = 0; i < run.count; ++i) {
      if (!places[i].AttendsTo(span)) continue;
      largest[i] = partials[i * partial.pitch() + partial.largest()];
      sums[i] = partials[i * partial.pitch() + partial.sum()];
      if (is_first(i)) totals.largest[i] = -__builtin_inff(), totals.sum[i] = 0;
    }
    if (span == run.first_span) {
      Store(totals.largest, Load(largest));
      Store(totals.sum, Load(sums));
    } else {
      const Vec16 before = Load(totals.largest), now = Load(largest), both = Max(before, now);
      const Vec16 old_weight = Exp(Sub(before, both)), new_weight = Exp(Sub(now, both));
      Store(keep, old_weight);
      Store(add, new_weight);
      Store(totals.largest, both);
      Store(totals.sum, Fma(Load(sums), new_weight, Mul(Load(totals.sum), old_weight)));
    }
    for (size_t i = 0; i < run.count; ++i) {
      if (!places[i].AttendsTo(span)) continue;
      const bool is_last = places[i].end <= (span + 1) * kAttentionSpan;
      const float* from = partials + i * partial.pitch();
      float* out = a.out + places[i].row;
      for (size_t d = 0; d < a.batch.head_dim; d += 16) {
        const size_t left = a.batch.head_dim - d;
        Vec16 sum = Load(from + d);
        if (!is_first(i)) sum = Fma(sum, Splat(add[i]), Mul(LoadUpTo16(out + d, left), Splat(keep[i])));
        if (is_last) sum = Div(sum, Splat(totals.sum[i]));
        left >= 16 ? Store(out + d, sum) : StorePartial(out + d, left, sum);
      }
    }
  }
}

}  // namespace
}  // namespace terrace
