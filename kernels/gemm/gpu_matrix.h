// A matrix of weights as the GPU's gemm kernels read it, and how it is made from what a file holds.
//
//   kBF16   [rows, columns] bf16, row-major: what cuBLASLt reads too
//   kE4M3   [rows, columns] FP8 E4M3 (OCP, "8-bit Floating Point Specification", 2023), row-major; one f32
//           scale a row: value = scale * code
//   kW4     4-bit codes in tiles; {scale, zero} f16 for each row and group of columns:
//           value = scale * (code - zero)
//   kW8     8-bit codes, otherwise as kW4
//   kSparse bf16, of each four neighbours of a row the two that are not zero and their places (2:4, which
//           `terrace prune` makes), in tiles: 0.5625 of kBF16's bytes, the same values
// Tiles are of kTileRows rows; the last is padded with zeros. A matrix may have more rows than what it is
// made of: those behind are zeros.
//
// What a file holds becomes
//   F32, F16, BF16  kBF16, rounded to nearest even; of F16 and BF16 kSparse where all of it is 2:4
//   Q4_0, INT4      kW4, exact
//   Q4_K            kW4 of groups of 32: scale and minimum / scale are rounded to f16, so a value is off by
//                   at most 2^-11 (|scale * code| + |minimum|) + 2^-25 |scale|
//   Q8_0, Q5_0      kW8 of groups of 32, exact
//   Q6_K            kW8 of groups of 16: the scale, an f16 times a small integer, is rounded to f16, so a
//                   value is off by at most 2^-11 of itself
//   INT8            kW8 of groups of 128; the scale of a row is rounded likewise (has_row_scales)
// and several matrices that are stacked become the narrowest of these that holds all, with the smallest of
// their groups. Where a scale is beyond f16 (too large, or so small that it would lose more than 2^-11), or
// the columns are no whole pieces of tiles, it is kBF16.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/weight_matrix.h"

namespace terrace {

class ThreadPool;

enum class GpuFormat : uint8_t { kBF16, kE4M3, kW4, kW8, kSparse };

inline constexpr uint32_t kTileRows = 16;

struct GpuMatrix {  // device pointers
  GpuFormat format = GpuFormat::kBF16;
  uint32_t rows = 0, columns = 0;
  uint32_t group = 0;           // columns that share a scale: kW4 32, 64 or 128; kW8 16, 32, 64 or 128
  bool has_row_scales = false;  // of kW8, INT8 alone: all groups of a row have one scale, and 128 as zero
  const void* codes = nullptr;
  const void* scales = nullptr;  // kE4M3: [rows] f32; kW4, kW8: in tiles
};

// Tiles: a warp reads a piece of kTileRows rows with 16 bytes a lane, which are codes of its own fragments of
// mma.m16n8k16 (kernels/simt/simt.h). Codes are [tile][piece][32 lanes][16 bytes]. Lane 4 g + t has rows g
// and g + 8, and of each block of 32 columns 8 t to 8 t + 7: four for the first step of the mma, four for the
// second; with groups of 16 columns, 4 t to 4 t + 3 of each block of 16, which is a step.
inline constexpr uint32_t kW4PieceColumns = 64, kW8PieceColumns = 32, kPieceBytes = 512;

struct CodePlace {
  uint32_t lane, word, bit;  // of the piece, of the lane's uint4, of the word
};

// Element [row, column] of a piece of 4-bit codes. A word is a step; a fragment's pair p has its elements in
// bits 4 p + 3 and 4 p + 19 (mod 32): rotated by 4 p they are the upper bits of a bf16's mantissa.
constexpr CodePlace W4Place(uint32_t row, uint32_t column) {
  const uint32_t pair = column / 2 % 2 * 2 + row / 8;
  return {row % 8 * 4 + column % 32 / 8, column / 4 % 2 + column / 32 * 2,
          (4 * pair + column % 2 * 16 + 3) % 32};
}
// Of 8-bit codes. Two words are a step, of rows g and g + 8 each: bytes 0 and 2, 1 and 3.
constexpr CodePlace W8Place(uint32_t row, uint32_t column, uint32_t group) {
  const bool is_fine = group == 16;
  const uint32_t t = is_fine ? column % 16 / 4 : column / 8, step = is_fine ? column / 16 : column / 4 % 2;
  return {row % 8 * 4 + t, step * 2 + column / 2 % 2, row / 8 * 8 + column % 2 * 16};
}

// Of kSparse a piece is of 64 columns, two steps of mma.sp.m16n8k32 (kernels/simt/simt.h): what is kept,
// [2 steps][32 lanes][the lane's a], then the lanes' places, in a word of which both steps find theirs.
inline constexpr uint32_t kSparsePieceColumns = 64, kSparseKeptBytes = 1024;
inline constexpr uint32_t kSparsePieceBytes = kSparseKeptBytes + 128;

struct SparsePlace {
  uint32_t kept;         // byte of the piece where the pair begins
  uint32_t places, bit;  // byte where the word of its places begins, their lowest bit there
};
// Of columns 4 four to 4 four + 3 of row `row` of a piece.
constexpr SparsePlace SparsePlaceOf(uint32_t row, uint32_t four) {
  const uint32_t g = row % 8, step = four / 8, j = four % 8;
  return {step * 512 + (g * 4 + j % 4) * 16 + (row / 8 + j / 4 * 2) * 4,
          kSparseKeptBytes + (g * 4 + step * 2 + j / 4) * 4, row / 8 * 16 + j % 4 * 4};
}

// {scale, zero} pairs, scale in the lower half: [tile][groups / n][8][n groups][rows g and g + 8]; n groups
// are a piece, or 1 where a piece is no more than a group.
constexpr uint32_t GroupsOfPiece(GpuFormat format, uint32_t group) {
  const uint32_t columns = format == GpuFormat::kW4 ? kW4PieceColumns : kW8PieceColumns;
  return columns > group ? columns / group : 1;
}

// The next multiple of kTileRows, as most kernels take rows.
constexpr uint32_t RowsOfWholeTiles(uint32_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }
constexpr uint32_t TilesOf(const GpuMatrix& matrix) { return RowsOfWholeTiles(matrix.rows) / kTileRows; }
constexpr uint32_t GroupsOf(const GpuMatrix& matrix) {
  return (matrix.columns + matrix.group - 1) / matrix.group;
}

size_t GpuCodeBytes(const GpuMatrix& matrix);
size_t GpuScaleBytes(const GpuMatrix& matrix);

// Matrices of equal columns stacked into one; `gated`: two of equal rows, a multiple of 8, of which 8 rows of
// the first and 8 of the second take turns.
struct GpuMatrixParts {
  std::span<const WeightMatrix> parts;
  bool gated = false;
};

// What they become, with null pointers: by their formats alone, as if all scales fitted f16 and nothing were
// 2:4, and by what they are. The caller may make it kBF16 or kE4M3, and give it more rows, unless it is
// gated.
GpuMatrix GpuMatrixByFormat(const GpuMatrixParts& parts);
GpuMatrix GpuMatrixOf(const GpuMatrixParts& parts, ThreadPool& pool);

// Whether the first rows of each are 2:4, kSparseSampleRows of which are read, and all may be kSparse: the
// rest shows when it is packed (`unfit` of pack_matrix_gpu.h).
inline constexpr size_t kSparseSampleRows = 16;
bool MayBeSparse(const GpuMatrixParts& parts, ThreadPool& pool);

// Fills GpuCodeBytes and GpuScaleBytes of memory of the host. It defines what pack_matrix_device.h does on a
// device, which is how models are loaded.
void PackGpuMatrix(const GpuMatrixParts& parts, const GpuMatrix& matrix, std::byte* codes, std::byte* scales,
                   ThreadPool& pool);

}  // namespace terrace
