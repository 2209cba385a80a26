// A matrix in a quantized format, put together block by block by who chooses the codes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/weight_matrix.h"
#include "tools/optimize/float_layer.h"
#include "worker/formats/weight_levels.h"

namespace terrace {

// `dtype`, or where rows of `columns` are not whole blocks of 256 what llama.cpp's files have then: Q5_0 for
// Q4_K, Q8_0 for Q6_K.
DType WithWholeBlocks(DType dtype, uint64_t columns);

// The levels of a block, and what a file stores of them.
struct BlockLevels {
  BlockHead head;                                    // not of INT8
  std::array<WeightLevel, kMostLevels> levels = {};  // of each run of RowFormat::shared()
};

// How rows of a matrix are cut into blocks. A value.
class RowFormat {
 public:
  // `group`: columns that share a level, of INT4 only; a multiple of the dtype's block. INVALID_ARGUMENT when
  // rows of `columns` are not whole blocks.
  static StatusOr<RowFormat> Create(DType dtype, uint32_t group, size_t columns);

  DType dtype() const { return dtype_; }
  const CodeFormat& codes() const { return codes_; }
  size_t columns() const { return columns_; }
  size_t block() const { return block_; }    // columns whose levels are chosen together
  size_t shared() const { return shared_; }  // columns that share a level; divides block()
  size_t blocks() const { return columns_ / block_; }

  // The levels of a block with these values: plain ones (PlainLevel), or with an `importance` of each of the
  // columns those that lose least (SearchLevel).
  BlockLevels Choose(std::span<const float> values, std::span<const float> importance) const;

 private:
  RowFormat(DType dtype, const CodeFormat& codes, size_t columns, size_t block, size_t shared)
      : dtype_(dtype), codes_(codes), columns_(columns), block_(block), shared_(shared) {}
  DType dtype_;
  CodeFormat codes_;
  size_t columns_, block_, shared_;
};

class QuantizedMatrix {
 public:
  QuantizedMatrix(const RowFormat& format, size_t rows);

  // A block of a row: its levels, and a code for each of its columns. Threads may put different rows.
  void Put(size_t row, size_t block, const BlockLevels& levels, std::span<const uint8_t> codes);

  const RowFormat& format() const { return format_; }
  size_t rows() const { return rows_; }
  WeightMatrix view() const;                                         // borrows
  std::span<const std::byte> codes() const { return codes_; }        // or blocks
  std::span<const float> row_scales() const { return row_scales_; }  // of INT8
  // The data as ModelWriter takes it: blocks, or INT8's codes and then scales.
  std::vector<std::byte> Bytes() const;

  FloatMatrix ToFloat(ThreadPool& pool) const;

 private:
  RowFormat format_;
  size_t rows_;
  std::vector<std::byte> codes_;
  std::vector<float> row_scales_;  // of INT8
};

// Every weight becomes the nearest level; `importance`, of each column or empty, is as of Choose.
QuantizedMatrix RoundToNearest(const FloatMatrix& matrix, const RowFormat& format,
                               std::span<const float> importance, ThreadPool& pool);

// What a matrix is written as.
struct LinearFormat {
  DType dtype = DType::kF16;
  std::optional<RowFormat> blocks = {};  // of `dtype`; without: it is of floats
  bool is_fp8 = false;                   // BF16 that FP8 E4M3 with a scale for each row holds (RoundToFp8)

  // As RowFormat's, for any dtype.
  static StatusOr<LinearFormat> Create(DType dtype, uint32_t group, size_t columns);
};

struct WrittenMatrix {
  std::vector<std::byte> bytes = {};  // as ModelWriter takes them
  FloatMatrix values = {};            // that they stand for
};

// RoundToNearest, and of floats each the nearest one; `importance` is of blocks.
WrittenMatrix WriteNearest(const FloatMatrix& matrix, const LinearFormat& format,
                           std::span<const float> importance, ThreadPool& pool);

}  // namespace terrace
