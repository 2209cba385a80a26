// Rows of a tensor while someone reads them: where they lie, or, of a matrix that its file stores otherwise
// (TensorView::maker), made for as long as this lives. Whoever loads a model holds one matrix after the
// other, so that no second copy of all weights is ever in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/status.h"
#include "kernels/weight_matrix.h"
#include "worker/tensor/tensor.h"

namespace terrace {

class ThreadPool;

class HeldRows {
 public:
  // Rows [begin, end) of a matrix, or all of a tensor. RESOURCE_EXHAUSTED without memory for them; the
  // maker's error for the first row that has one.
  static StatusOr<HeldRows> Hold(const TensorView& tensor, uint64_t begin, uint64_t end, ThreadPool& pool);
  static StatusOr<HeldRows> Hold(const TensorView& tensor, ThreadPool& pool);

  const WeightMatrix& matrix() const { return matrix_; }  // borrows this, or what the tensor borrows

 private:
  WeightMatrix matrix_;
  std::unique_ptr<std::byte[]> memory_;  // what was made
};

}  // namespace terrace
