// Outputs [begin, end). Included once per instruction set, after simd/vec16_*.h.
//
// Blocks of rows by up to kTokenBlock tokens keep their sums in registers. Weights are used straight from
// where they lie, once for each block; or, where converting them so often costs more, a tile of weight rows
// is unpacked to f32 first and then meets every block of tokens. One arithmetic for any number of tokens:
// blocks decide only which independent sums are in flight together, and unpacking is exact.
#pragma once

#include "kernels/gemm/gemm.h"
#include "kernels/simd/unpack_row.h"

namespace terrace {
namespace {

// Rows of weights, `pitch` bytes apart, that can be read in whole vectors.
struct WeightRows {
  const std::byte* data;
  size_t pitch;
  size_t count;
};

// Adds elements [k, k + valid) of kRows rows times kTokens tokens to the partial sums, [kTokens, kRows].
template <typename Weights, size_t kRows, size_t kTokens>
[[gnu::always_inline]] inline void AddProducts(const GemmArgs& a, const std::byte* const (&rows)[kRows],
                                               const float* x, size_t k, size_t valid,
                                               Vec16 (&sums)[kTokens * kRows]) {
  Vec16 weights[kRows];
#pragma GCC unroll 8
  for (size_t row = 0; row < kRows; ++row) weights[row] = Weights::Load16(rows[row], k);
#pragma GCC unroll 8
  for (size_t token = 0; token < kTokens; ++token) {
    const float* from = x + token * a.inputs() + k;
    const Vec16 activations = valid == 16 ? Load(from) : LoadPartial(from, valid);
#pragma GCC unroll 8
    for (size_t row = 0; row < kRows; ++row) {
      sums[token * kRows + row] = Fma(weights[row], activations, sums[token * kRows + row]);
    }
  }
}

// Outputs [output, output + rows.count) of tokens [token, token + kTokens); rows.count <= kRows. What a block
// has too many repeats the last row and is dropped.
template <typename Weights, size_t kRows, size_t kTokens>
void GemmBlock(const GemmArgs& a, const WeightRows& rows, size_t token, size_t output) {
  Vec16 sums[kTokens * kRows];
#pragma GCC unroll 32
  for (size_t i = 0; i < kTokens * kRows; ++i) sums[i] = Zero();
  const std::byte* from[kRows];
#pragma GCC unroll 8
  for (size_t row = 0; row < kRows; ++row) {
    from[row] = rows.data + (row < rows.count ? row : rows.count - 1) * rows.pitch;
  }
  const float* x = a.x + token * a.inputs();
  const size_t whole = a.inputs() / 16 * 16;
  for (size_t k = 0; k < whole; k += 16) AddProducts<Weights, kRows, kTokens>(a, from, x, k, 16, sums);
  if (whole < a.inputs()) {
    AddProducts<Weights, kRows, kTokens>(a, from, x, whole, a.inputs() - whole, sums);
  }
#pragma GCC unroll 8
  for (size_t i = 0; i < kTokens; ++i) {
    float* out = a.out + (token + i) * a.outputs() + output;
#pragma GCC unroll 8
    for (size_t row = 0; row < kRows; ++row) {
      const float sum = Sum(sums[i * kRows + row]);
      if (row < rows.count) out[row] = a.add_to_out ? out[row] + sum : sum;
    }
  }
}

// All `rows` times tokens [token, token + kTokens).
template <typename Weights, size_t kTokens>
void GemmTokenBlock(const GemmArgs& a, const WeightRows& rows, size_t token, size_t output) {
  // The fewer tokens, the more rows, so that enough sums are in flight.
  constexpr size_t kRows = 2 * kTokens <= kTokenBlock ? 2 * kRowBlock : kRowBlock;
  for (size_t row = 0; row < rows.count; row += kRows) {
    GemmBlock<Weights, kRows, kTokens>(a,
                                       {.data = rows.data + row * rows.pitch,
                                        .pitch = rows.pitch,
                                        .count = rows.count - row < kRows ? rows.count - row : kRows},
                                       token, output + row);
  }
}

// `count` tokens, 1 to kTokens.
template <typename Weights, size_t kTokens = kTokenBlock>
void GemmTokens(const GemmArgs& a, const WeightRows& rows, size_t token, size_t count, size_t output) {
  if constexpr (kTokens > 1) {
    if (count < kTokens) return GemmTokens<Weights, kTokens - 1>(a, rows, token, count, output);
  }
  GemmTokenBlock<Weights, kTokens>(a, rows, token, output);
}

// All `rows` times all tokens, in blocks as even as can be: a block of one token has few sums in flight.
template <typename Weights>
void GemmRows(const GemmArgs& a, const WeightRows& rows, size_t output) {
  const size_t blocks = (a.tokens + kTokenBlock - 1) / kTokenBlock;
  for (size_t block = 0, token = 0; block < blocks; ++block) {
    const size_t end = a.tokens * (block + 1) / blocks;
    GemmTokens<Weights>(a, rows, token, end - token, output);
    token = end;
  }
}

// Unpacking a weight pays when more blocks of tokens than this read it (measured on whole passes).
template <typename Weights>
constexpr size_t kDirectBlocks = kDirect16BitBlocks;
template <>
constexpr size_t kDirectBlocks<F32Weights> = ~size_t{0};
template <>
constexpr size_t kDirectBlocks<Q8Weights> = 4;

// `tile`: memory for tile_rows rows (a multiple of kRowBlock) of `stride` floats, inputs() rounded up to 16.
inline void GemmOutputs(const GemmArgs& a, size_t begin, size_t end, float* tile, size_t tile_rows,
                        size_t stride) {
  bool is_direct = false;
  WithWeights(a.weights.dtype, [&](auto weights) {
    const size_t blocks = (a.tokens + kTokenBlock - 1) / kTokenBlock;
    is_direct = blocks <= kDirectBlocks<decltype(weights)> && stride == a.inputs();
  });
  for (size_t first = begin; first < end; first += tile_rows) {
    const size_t count = end - first < tile_rows ? end - first : tile_rows;
    if (is_direct) {
      const WeightRows rows{a.weights.Row(first), a.weights.RowBytes(), count};
      WithWeights(a.weights.dtype, [&](auto weights) { GemmRows<decltype(weights)>(a, rows, first); });
      continue;
    }
    for (size_t row = 0; row < count; ++row) {
      UnpackRow(a.weights, first + row, tile + row * stride);
      for (size_t k = a.inputs(); k < stride; ++k) tile[row * stride + k] = 0;
    }
    GemmRows<F32Weights>(a, {reinterpret_cast<const std::byte*>(tile), stride * sizeof(float), count}, first);
  }
}

}  // namespace
}  // namespace terrace
