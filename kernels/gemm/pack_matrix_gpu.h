// Rows of weights, as files hold them, on their way into a GpuMatrix in the memory of a device: a piece of
// the matrix is staged, row behind row as it lies in the file, and packed there (pack_matrix_device.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/gemm/gpu_matrix.h"

namespace terrace {

inline constexpr uint32_t kMostPackParts = 3;  // query, key and value
inline constexpr uint32_t kPackColumns = 8;    // a matrix has a multiple of so many

// Of one of GpuMatrixParts: which rows are staged, and where.
struct GpuPackPart {
  DType dtype = DType::kF32;
  uint32_t rows = 0;                    // of the part; 0: there is no such part
  uint32_t first = 0, count = 0;        // those that are staged
  uint32_t row_bytes = 0;               // staged without gaps
  uint64_t rows_at = 0, scales_at = 0;  // in staged memory; scales are f32, of kInt8. Multiples of 256
};

// Where a matrix goes.
struct GpuPackTarget {
  GpuMatrix matrix;                               // its own pointers are not used
  std::byte *codes = nullptr, *scales = nullptr;  // of the whole matrix; multiples of 16
  // Set to 1 when a scale does not fit f16, or of kSparse more than two of four are not zero: then the matrix
  // is to be made anew as kBF16. For kW4, kW8 and kSparse.
  uint32_t* unfit = nullptr;
};

struct GpuPackArgs {
  GpuPackTarget to;
  GpuPackPart parts[kMostPackParts] = {};
  bool is_gated = false;
  const std::byte* staged = nullptr;
  uint32_t first_row = 0, row_count = 0;  // of the matrix: whole tiles, but at its end
};

// Rows [first_row, first_row + row_count) of the matrix; `staged` is null. Of rows behind those of the parts
// nothing is staged.
GpuPackArgs GpuPackArgsOf(const GpuMatrixParts& parts, const GpuPackTarget& to, uint32_t first_row,
                          uint32_t row_count);
uint64_t StagedBytes(const GpuPackArgs& args);
// The most rows, a multiple of kTileRows, whose staged bytes are at most `bytes` wherever they begin; 0: not
// even a tile's are.
uint32_t RowsStagedIn(const GpuMatrixParts& parts, uint64_t bytes);

// What is to be copied to where in staged memory, in pieces of at most kMostStagedPieceBytes. Parts may be
// columns of wider matrices (WeightMatrix::row_pitch), as a rank of a group has them.
struct StagedPiece {
  uint64_t at = 0;
  const std::byte* from = nullptr;
  size_t bytes = 0;
};
inline constexpr size_t kMostStagedPieceBytes = size_t{1} << 20;
std::vector<StagedPiece> StagedPieces(const GpuMatrixParts& parts, const GpuPackArgs& args);

}  // namespace terrace
