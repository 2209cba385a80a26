// Outputs [begin, end). Included once per instruction set, after simd/vec16_*.h.
//
// A tile of weight rows is unpacked to f32 once and then meets every token, in blocks of kRowBlock rows by up
// to kTokenBlock tokens whose sums stay in registers. One arithmetic for any number of tokens: blocks decide
// only which independent sums are in flight together.
#pragma once

#include "kernels/gemm/gemm.h"
#include "kernels/simd/unpack_row.h"

namespace terrace {
namespace {

// Adds elements [k, k + valid) of kRowBlock rows times kTokens tokens to the partial sums.
template <size_t kTokens>
[[gnu::always_inline]] inline void AddProducts(const GemmArgs& a, const float* tile, size_t stride,
                                               const float* x, size_t k, size_t valid,
                                               Vec16 (&sums)[kRowBlock][kTokens]) {
  Vec16 weights[kRowBlock];
#pragma GCC unroll 8
  for (size_t row = 0; row < kRowBlock; ++row) weights[row] = Load(tile + row * stride + k);
#pragma GCC unroll 8
  for (size_t token = 0; token < kTokens; ++token) {
    const float* from = x + token * a.inputs() + k;
    const Vec16 activations = valid == 16 ? Load(from) : LoadPartial(from, valid);
#pragma GCC unroll 8
    for (size_t row = 0; row < kRowBlock; ++row) {
      sums[row][token] = Fma(weights[row], activations, sums[row][token]);
    }
  }
}

// Outputs [output, output + rows) of tokens [token, token + kTokens); rows <= kRowBlock. Spare rows of the
// tile are computed and dropped.
template <size_t kTokens>
void GemmBlock(const GemmArgs& a, const float* tile, size_t stride, size_t token, size_t output,
               size_t rows) {
  Vec16 sums[kRowBlock][kTokens];
#pragma GCC unroll 8
  for (size_t row = 0; row < kRowBlock; ++row) {
#pragma GCC unroll 8
    for (size_t i = 0; i < kTokens; ++i) sums[row][i] = Zero();
  }
  const float* x = a.x + token * a.inputs();
  const size_t whole = a.inputs() / 16 * 16;
  for (size_t k = 0; k < whole; k += 16) AddProducts<kTokens>(a, tile, stride, x, k, 16, sums);
  if (whole < a.inputs()) AddProducts<kTokens>(a, tile, stride, x, whole, a.inputs() - whole, sums);
#pragma GCC unroll 8
  for (size_t i = 0; i < kTokens; ++i) {
    float* out = a.out + (token + i) * a.outputs() + output;
#pragma GCC unroll 8
    for (size_t row = 0; row < kRowBlock; ++row) {
      const float sum = Sum(sums[row][i]);
      if (row < rows) out[row] = a.add_to_out ? out[row] + sum : sum;
    }
  }
}

inline void GemmTokens(const GemmArgs& a, const float* tile, size_t stride, size_t token, size_t count,
                       size_t output, size_t rows) {
  static_assert(kTokenBlock <= 6);
  switch (count) {
    case 1:
      return GemmBlock<1>(a, tile, stride, token, output, rows);
    case 2:
      return GemmBlock<2>(a, tile, stride, token, output, rows);
    case 3:
      return GemmBlock<3>(a, tile, stride, token, output, rows);
    case 4:
      return GemmBlock<4>(a, tile, stride, token, output, rows);
    case 5:
      return GemmBlock<5>(a, tile, stride, token, output, rows);
    case 6:
      return GemmBlock<6>(a, tile, stride, token, output, rows);
  }
}

// `tile`: memory for tile_rows rows (a multiple of kRowBlock) of `stride` floats, inputs() rounded up to 16.
inline void GemmOutputs(const GemmArgs& a, size_t begin, size_t end, float* tile, size_t tile_rows,
                        size_t stride) {
  for (size_t first = begin; first < end; first += tile_rows) {
    const size_t rows = end - first < tile_rows ? end - first : tile_rows;
    for (size_t row = 0; row < rows; ++row) {
      UnpackRow(a.weights, first + row, tile + row * stride);
      for (size_t k = a.inputs(); k < stride; ++k) tile[row * stride + k] = 0;
    }
    for (size_t token = 0; token < a.tokens; token += kTokenBlock) {
      const size_t count = a.tokens - token < kTokenBlock ? a.tokens - token : kTokenBlock;
      for (size_t row = 0; row < rows; row += kRowBlock) {
        const size_t kept = rows - row < kRowBlock ? rows - row : kRowBlock;
        GemmTokens(a, tile + row * stride, stride, token, count, first + row, kept);
      }
    }
  }
}

}  // namespace
}  // namespace terrace
