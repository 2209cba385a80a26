// A matrix of weights as the kernels read it: borrowed bytes that may lie at any address (weight files
// promise no alignment).
#pragma once

#include <cstddef>

#include "kernels/dtype.h"

namespace terrace {

struct WeightMatrix {
  DType dtype = DType::kF32;
  const std::byte* data = nullptr;  // [rows, columns], rows contiguous
  size_t rows = 0;
  size_t columns = 0;                 // whole blocks of the dtype
  const float* row_scales = nullptr;  // [rows], of kInt8 only

  size_t RowBytes() const { return columns / Info(dtype).block_elements * Info(dtype).block_bytes; }
  const std::byte* Row(size_t row) const { return data + row * RowBytes(); }
};

}  // namespace terrace
