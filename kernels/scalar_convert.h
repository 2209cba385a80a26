// Scalar conversions of weight elements to f32. All are exact: every F16, BF16 and Q8_0 value is an f32 value
// (a Q8_0 value is an 11-bit scale times an 8-bit integer).
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/weight_matrix.h"

namespace terrace {

constexpr float FloatFromF16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t exponent = (bits >> 10) & 0x1f;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));  // infinity, NaN
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // zero and subnormals
  return sign != 0 ? -magnitude : magnitude;
}

constexpr float FloatFromBF16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

template <typename T>
T LoadUnaligned(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

// Element [row, column].
inline float WeightAt(const WeightMatrix& matrix, size_t row, size_t column) {
  const std::byte* data = matrix.Row(row);
  switch (matrix.dtype) {
    case DType::kF32:
      return LoadUnaligned<float>(data + column * 4);
    case DType::kF16:
      return FloatFromF16(LoadUnaligned<uint16_t>(data + column * 2));
    case DType::kBF16:
      return FloatFromBF16(LoadUnaligned<uint16_t>(data + column * 2));
    case DType::kQ8_0: {
      const std::byte* block = data + column / 32 * 34;
      return FloatFromF16(LoadUnaligned<uint16_t>(block)) *
             static_cast<float>(LoadUnaligned<int8_t>(block + 2 + column % 32));
    }
  }
  return 0;
}

}  // namespace terrace
