// What the tests of the GPU's gemm kernels share: random matrices as files hold them, and what their packed
// form says an element is.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "base/parallel_for.h"
#include "kernels/gemm/gpu_matrix.h"
#include "kernels/scalar_convert.h"

namespace terrace {

// Weights of magnitude about 1, at an odd address. Codes are any; scales are of both signs.
struct FileWeights {
  FileWeights(DType dtype, size_t rows, size_t columns, uint64_t seed)
      : row_scales(rows), matrix{.dtype = dtype, .rows = rows, .columns = columns} {
    const DTypeInfo& info = Info(dtype);
    bytes.resize(rows * matrix.RowBytes() + 1);
    matrix.data = bytes.data() + 1;
    matrix.row_scales = row_scales.data();
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    for (float& scale : row_scales)
      scale = std::copysign(std::abs(normal(random)) + 0.125f, normal(random)) / 64;
    for (size_t i = 0; i < rows * columns / info.block_elements; ++i) {
      std::byte* block = bytes.data() + 1 + i * info.block_bytes;
      const auto put_f16 = [&](size_t at, float value) {
        const uint16_t bits = F16FromFloat(value);
        std::memcpy(block + at, &bits, 2);
      };
      const float value = normal(random);
      const uint16_t rounded = BF16FromFloat(value);
      switch (dtype) {
        case DType::kF32:
          std::memcpy(block, &value, 4);
          break;
        case DType::kBF16:
          std::memcpy(block, &rounded, 2);
          break;
        case DType::kF16:
          put_f16(0, value);
          break;
        case DType::kQ8_0:
          put_f16(0, value / 64);
          break;
        case DType::kQ4_0:
          put_f16(0, value / 4);
          break;
        case DType::kQ5_0:
          put_f16(0, value / 8);
          break;
        case DType::kQ4_K:
          put_f16(0, value / 256);
          put_f16(2, normal(random) / 32);
          break;
        case DType::kQ6_K:
          put_f16(208, value / 1024);
          break;
        case DType::kInt4G32:
        case DType::kInt4G128:
          put_f16(0, value / 4);
          block[2] &= std::byte{0x0f};
          break;
        case DType::kInt8:
          break;
      }
    }
  }

  std::vector<std::byte> bytes;
  std::vector<float> row_scales;
  WeightMatrix matrix;  // borrows both
};

// Makes a matrix of F16 or BF16 2:4: of each four at most two stay, at random places; now and then fewer, as
// where a weight is zero anyway.
inline void KeepTwoOfFour(FileWeights& weights, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (size_t i = 0; i < weights.matrix.rows * weights.matrix.columns / 4; ++i) {
    std::byte* const four = weights.bytes.data() + 1 + 8 * i;
    const uint64_t choice = random();
    const size_t one = choice % 4, other = (one + 1 + choice / 4 % 3) % 4;
    for (size_t k = 0; k < 4; ++k) {
      const bool is_kept = (k == one && choice / 16 % 16 != 0) || (k == other && choice / 256 % 16 != 0);
      if (!is_kept) std::memset(four + 2 * k, 0, 2);
    }
  }
}

// A packed matrix in memory of the host.
struct PackedGpuMatrix {
  PackedGpuMatrix(const GpuMatrixParts& parts, const GpuMatrix& format)
      : codes(GpuCodeBytes(format)), scales(GpuScaleBytes(format)), matrix(format) {
    ThreadPool pool(2);
    PackGpuMatrix(parts, format, codes.data(), scales.data(), pool);
    matrix.codes = codes.data();
    matrix.scales = scales.data();
  }

  std::vector<std::byte> codes, scales;
  GpuMatrix matrix;  // borrows both
};

struct GpuElement {
  float scale = 1, code = 0, zero = 0;
  float value() const { return scale * (code - zero); }
};

inline GpuElement GpuElementAt(const GpuMatrix& matrix, uint32_t row, uint32_t column) {
  const auto* codes = static_cast<const std::byte*>(matrix.codes);
  const auto* scales = static_cast<const std::byte*>(matrix.scales);
  const size_t index = size_t{row} * matrix.columns + column;
  if (matrix.format == GpuFormat::kBF16)
    return {.code = FloatFromBF16(LoadUnaligned<uint16_t>(codes + 2 * index))};
  if (matrix.format == GpuFormat::kE4M3) {
    return {.scale = LoadUnaligned<float>(scales + 4 * row),
            .code = FloatFromE4M3(std::to_integer<uint8_t>(codes[index]))};
  }
  if (matrix.format == GpuFormat::kSparse) {
    const size_t pieces = matrix.columns / kSparsePieceColumns;
    const std::byte* piece =
        codes + (row / kTileRows * pieces + column / kSparsePieceColumns) * kSparsePieceBytes;
    const SparsePlace place = SparsePlaceOf(row % kTileRows, column % kSparsePieceColumns / 4);
    const uint32_t places = LoadUnaligned<uint32_t>(piece + place.places) >> place.bit & 15;
    for (uint32_t i = 0; i < 2; ++i) {
      if ((places >> 2 * i & 3) == column % 4)
        return {.code = FloatFromBF16(LoadUnaligned<uint16_t>(piece + place.kept + 2 * i))};
    }
    return {};
  }
  const bool is_narrow = matrix.format == GpuFormat::kW4;
  const uint32_t piece_columns = is_narrow ? kW4PieceColumns : kW8PieceColumns;
  const uint32_t tile = row / kTileRows, in_tile = row % kTileRows;
  const CodePlace place = is_narrow ? W4Place(in_tile, column % piece_columns)
                                    : W8Place(in_tile, column % piece_columns, matrix.group);
  const size_t piece = size_t{tile} * (matrix.columns / piece_columns) + column / piece_columns;
  const auto word = LoadUnaligned<uint32_t>(codes + piece * kPieceBytes + place.lane * 16 + place.word * 4);
  const uint32_t rotated = word >> place.bit | (place.bit == 0 ? 0 : word << (32 - place.bit));
  const uint32_t group = column / matrix.group, together = GroupsOfPiece(matrix.format, matrix.group);
  const size_t at =
      ((size_t{tile} * (GroupsOf(matrix) / together) + group / together) * 8 + in_tile % 8) * together;
  const auto pair = LoadUnaligned<uint32_t>(scales + ((at + group % together) * 2 + in_tile / 8) * 4);
  return {.scale = FloatFromF16(static_cast<uint16_t>(pair)),
          .code = static_cast<float>(rotated & (is_narrow ? 0x0f : 0xff)),
          .zero = FloatFromF16(static_cast<uint16_t>(pair >> 16))};
}

}  // namespace terrace
