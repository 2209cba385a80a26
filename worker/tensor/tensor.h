// Tensors as the kernels see them: a dtype, a shape and borrowed bytes. Values; nobody owns memory here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/status.h"
#include "kernels/dtype.h"
#include "kernels/weight_matrix.h"

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

// Makes the rows of a matrix that its file stores otherwise than kernels read it. Immutable; any thread.
class RowMaker {
 public:
  virtual ~RowMaker() = default;
  // Rows [begin, end), in the tensor's dtype, one behind the other. DATA_LOSS names file, tensor and row.
  virtual Status Make(uint64_t begin, uint64_t end, std::byte* to) const = 0;
};

// Borrowed: the WeightSource (or buffer) it came from must outlive it.
struct TensorView {
  DType dtype = DType::kF32;
  Shape shape;
  const std::byte* data = nullptr;  // null where `maker` makes it: worker/tensor/held_rows.h
  uint64_t bytes = 0;
  const float* row_scales = nullptr;  // [rows], of kInt8 only; not among `bytes`
  const RowMaker* maker = nullptr;
};

// As the kernels read it: of one or two dimensions, a vector is a matrix of one row. Without bytes (null)
// where they are made.
inline WeightMatrix OutlineOf(const TensorView& tensor) {
  const bool is_vector = tensor.shape.rank == 1;
  return {.dtype = tensor.dtype,
          .data = tensor.data,
          .rows = is_vector ? 1 : tensor.shape[0],
          .columns = tensor.shape[is_vector ? 0 : 1],
          .row_scales = tensor.row_scales};
}

// The same of one whose bytes are there.
inline WeightMatrix MatrixOf(const TensorView& tensor) {
  CHECK(tensor.maker == nullptr, "a matrix that has to be made is read");
  return OutlineOf(tensor);
}

}  // namespace terrace
