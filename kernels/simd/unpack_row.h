// Weights to f32, exactly: sixteen elements of a row, or all of them. Included once per instruction set,
// after simd/vec16_*.h.
#pragma once

#include "kernels/quant/weight_values.h"

namespace terrace {
namespace {

// Row `row` of `matrix` into out, [columns].
inline void UnpackRow(const WeightMatrix& matrix, size_t row, float* out) {
  const std::byte* data = matrix.Row(row);
  const size_t count = matrix.columns;
  const auto unpack = [&](auto load16, auto load1) {
    size_t k = 0;
    for (; k + 16 <= count; k += 16) Store(out + k, load16(k));
    for (; k < count; ++k) out[k] = load1(k);
  };
  switch (matrix.dtype) {
    case DType::kF32:
      std::memcpy(out, data, 4 * count);
      return;
    case DType::kF16:
      return unpack([&](size_t k) { return LoadF16(data + 2 * k); },
                    [&](size_t k) { return FloatFromF16(LoadUnaligned<uint16_t>(data + 2 * k)); });
    case DType::kBF16:
      return unpack([&](size_t k) { return LoadBF16(data + 2 * k); },
                    [&](size_t k) { return FloatFromBF16(LoadUnaligned<uint16_t>(data + 2 * k)); });
    default:
      return DecodeRow(matrix, row, out);
  }
}

}  // namespace
}  // namespace terrace
