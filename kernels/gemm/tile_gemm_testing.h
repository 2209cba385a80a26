// What the tests of tile_gemm expect: the product of values that were rounded to bf16.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/gemm/gpu_gemm_testing.h"

namespace terrace {

// The values of a matrix of tiles as bf16, by the f32 operations of TileFragment; E4M3 stays as it is.
struct RoundedGpuMatrix {
  explicit RoundedGpuMatrix(const GpuMatrix& from) : matrix(from) {
    if (from.format == GpuFormat::kE4M3) return;
    const float offset = from.format == GpuFormat::kW4 ? 16 : 0;
    values.reserve(size_t{from.rows} * from.columns);
    for (uint32_t row = 0; row < from.rows; ++row) {
      for (uint32_t column = 0; column < from.columns; ++column) {
        const GpuElement element = GpuElementAt(from, row, column);
        values.push_back(BF16FromFloat(
            std::fma(element.code + offset, element.scale, -(element.zero + offset) * element.scale)));
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
