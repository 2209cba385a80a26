// A matrix of weights as the kernels read it: borrowed bytes that may lie at any address (weight files
// promise no alignment).
#pragma once

#include <cstddef>

#include "kernels/dtype.h"

namespace terrace {

struct WeightMatrix {
  DType dtype = DType::kF32;
  const std::byte* data = nullptr;  // [rows, columns], rows contiguous; null: an outline, which nobody reads
  size_t rows = 0;
  size_t columns = 0;                 // whole blocks of the dtype
  const float* row_scales = nullptr;  // [rows], of kInt8 only
  size_t row_pitch = 0;               // bytes from one row to the next; 0: RowBytes(), without a gap

  size_t RowBytes() const { return columns / Info(dtype).block_elements * Info(dtype).block_bytes; }
  size_t RowPitch() const { return row_pitch > 0 ? row_pitch : RowBytes(); }
  const std::byte* Row(size_t row) const { return data + row * RowPitch(); }
};

// A part of `matrix` where it lies: rows [begin, begin + count), or columns, of which both ends are whole
// blocks of the dtype.
inline WeightMatrix RowsOf(const WeightMatrix& matrix, size_t begin, size_t count) {
  WeightMatrix out = matrix;
  if (matrix.data != nullptr) out.data = matrix.Row(begin);
  out.rows = count;
  if (matrix.row_scales != nullptr) out.row_scales = matrix.row_scales + begin;
  return out;
}
inline WeightMatrix ColumnsOf(const WeightMatrix& matrix, size_t begin, size_t count) {
  const DTypeInfo& info = Info(matrix.dtype);
  WeightMatrix out = matrix;
  if (matrix.data != nullptr) out.data = matrix.data + begin / info.block_elements * info.block_bytes;
  out.columns = count;
  out.row_pitch = matrix.RowPitch();
  return out;
}

}  // namespace terrace
