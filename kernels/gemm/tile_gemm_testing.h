// What the tests of tile_gemm and wide_gemm expect: the product of values that were rounded to bf16.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/gemm/gpu_gemm_testing.h"

namespace terrace {

// By the f32 operations of TileFragment. `offset` is Pieces::kOffset.
inline uint16_t TileValue(const GpuElement& element, float offset) {
  return BF16FromFloat(
      std::fma(element.code + offset, element.scale, -(element.zero + offset) * element.scale));
}

// By the operations of WideFragment; those through f32 are rounded twice, which the bounds allow.
inline uint16_t WideValue(const GpuElement& element, float offset) {
  const auto rounded = [](float value) { return FloatFromBF16(BF16FromFloat(value)); };
  const float zero = element.zero + offset, scale = rounded(element.scale);
  const float d = rounded(element.code + offset - rounded(zero));
  const float offset_rest = rounded(-(zero - rounded(zero)) * element.scale);
  const float rest = rounded(std::fma(d, element.scale - scale, offset_rest));
  return BF16FromFloat(std::fma(d, scale, rest));
}

// The values of a matrix of tiles as bf16; E4M3 stays as it is.
struct RoundedGpuMatrix {
  explicit RoundedGpuMatrix(const GpuMatrix& from, uint16_t (*value)(const GpuElement&, float) = TileValue)
      : matrix(from) {
    if (from.format == GpuFormat::kE4M3) return;
    const float offset = from.format == GpuFormat::kW4 ? 16 : 0;
    values.reserve(size_t{from.rows} * from.columns);
    for (uint32_t row = 0; row < from.rows; ++row) {
      for (uint32_t column = 0; column < from.columns; ++column) {
        values.push_back(value(GpuElementAt(from, row, column), offset));
      }
    }
    matrix = {.format = GpuFormat::kBF16, .rows = from.rows, .columns = from.columns, .codes = values.data()};
  }
  RoundedGpuMatrix(const RoundedGpuMatrix&) = delete;
  RoundedGpuMatrix& operator=(const RoundedGpuMatrix&) = delete;

  std::vector<uint16_t> values;
  GpuMatrix matrix;  // borrows `values`, or what it was made of
};

// One for each kind of GpuMatrix that tile_gemm tells apart, and Q4_K for its zeros.
inline constexpr DType kTileGemmDTypes[] = {DType::kF32,  DType::kQ4_0, DType::kQ4_K, DType::kInt4G128,
                                            DType::kQ8_0, DType::kQ6_K, DType::kInt8};

}  // namespace terrace
