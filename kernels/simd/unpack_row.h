// One row of weights to f32, exactly. Included once per instruction set, after vec16_*.h.
#pragma once

#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

inline void UnpackRow(const WeightMatrix& matrix, size_t row, float* out) {
  const std::byte* data = matrix.Row(row);
  const size_t whole = matrix.columns / 16 * 16;
  switch (matrix.dtype) {
    case DType::kF32:
      __builtin_memcpy(out, data, matrix.columns * sizeof(float));
      return;
    case DType::kF16:
      for (size_t k = 0; k < whole; k += 16) Store(out + k, LoadF16(data + 2 * k));
      break;
    case DType::kBF16:
      for (size_t k = 0; k < whole; k += 16) Store(out + k, LoadBF16(data + 2 * k));
      break;
    case DType::kQ8_0:
      for (size_t k = 0; k < whole; k += 32, data += 34) {
        const Vec16 scale = Splat(FloatFromF16(
            static_cast<uint16_t>(static_cast<uint16_t>(data[0]) | static_cast<uint16_t>(data[1]) << 8)));
        Store(out + k, Mul(scale, LoadI8(data + 2)));
        Store(out + k + 16, Mul(scale, LoadI8(data + 18)));
      }
      return;
  }
  for (size_t k = whole; k < matrix.columns; ++k) out[k] = WeightAt(matrix, row, k);
}

}  // namespace
}  // namespace terrace
