// Tensors as the kernels see them: a dtype, a shape and borrowed bytes. Values; nobody owns memory here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/status.h"
#include "kernels/dtype.h"

namespace terrace {

// Up to four dimensions, outermost first: a matrix is [rows, columns], each row contiguous.
struct Shape {
  static constexpr size_t kMaxRank = 4;
  std::array<uint64_t, kMaxRank> dims = {};
  size_t rank = 0;

  Shape() = default;
  Shape(std::initializer_list<uint64_t> list);  // at most kMaxRank
  uint64_t operator[](size_t i) const { return dims[i]; }
  friend bool operator==(const Shape&, const Shape&) = default;
  std::string ToString() const;  // "[1024, 64]"
};

// Elements (1 for rank 0), or INVALID_ARGUMENT (reason bad_shape) when the product passes 2^63 - 1.
StatusOr<uint64_t> ElementCount(const Shape& shape);
// Bytes of a tensor of `dtype`: the innermost dimension must be whole blocks (Q8_0: 32). Overflow-checked;
// INVALID_ARGUMENT with reason bad_shape or bad_dtype.
StatusOr<uint64_t> ByteCount(DType dtype, const Shape& shape);

// Borrowed: the WeightSource (or buffer) it came from must outlive it.
struct TensorView {
  DType dtype = DType::kF32;
  Shape shape;
  const std::byte* data = nullptr;
  uint64_t bytes = 0;
};

}  // namespace terrace
