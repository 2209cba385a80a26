// Weights to f32, exactly: sixteen elements of a row, or all of them. Included once per instruction set,
// after simd/vec16_*.h.
#pragma once

#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

// The rows of each DType: elements [k, k + 16), k a multiple of 16.
struct F32Weights {
  static Vec16 Load16(const std::byte* row, size_t k) { return LoadF32(row + 4 * k); }
};
struct F16Weights {
  static Vec16 Load16(const std::byte* row, size_t k) { return LoadF16(row + 2 * k); }
};
struct BF16Weights {
  static Vec16 Load16(const std::byte* row, size_t k) { return LoadBF16(row + 2 * k); }
};
struct Q8Weights {
  static Vec16 Load16(const std::byte* row, size_t k) {
    const std::byte* block = row + k / 32 * 34;
    return Mul(SplatF16(block), LoadI8(block + 2 + k % 32));
  }
};

// Calls use(rows) with the struct of `dtype`.
template <typename Use>
inline void WithWeights(DType dtype, Use use) {
  switch (dtype) {
    case DType::kF32:
      return use(F32Weights());
    case DType::kF16:
      return use(F16Weights());
    case DType::kBF16:
      return use(BF16Weights());
    case DType::kQ8_0:
      return use(Q8Weights());
  }
}

inline void UnpackRow(const WeightMatrix& matrix, size_t row, float* out) {
  const std::byte* data = matrix.Row(row);
  const size_t whole = matrix.columns / 16 * 16;
  WithWeights(matrix.dtype, [=](auto weights) {
    for (size_t k = 0; k < whole; k += 16) Store(out + k, weights.Load16(data, k));
  });
  for (size_t k = whole; k < matrix.columns; ++k) out[k] = WeightAt(matrix, row, k);
}

}  // namespace
}  // namespace terrace
