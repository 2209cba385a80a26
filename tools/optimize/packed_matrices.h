// Matrices in f32 as gemm takes them. Values; they may borrow the matrices. For the sources of this folder.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/op_table.h"
#include "tools/optimize/float_layer.h"
#include "worker/tensor/large_buffer.h"

namespace terrace {

class PackedMatrices {
 public:
  // RESOURCE_EXHAUSTED for their memory.
  static StatusOr<PackedMatrices> Make(const std::vector<const FloatMatrix*>& matrices, const OpTable& ops,
                                       ThreadPool& pool) {
    size_t bytes = 0;
    PackedMatrices packed;
    for (const FloatMatrix* matrix : matrices) {
      packed.weights_.push_back(ops.layout(matrix->view(), ComputeType::kF32, pool));
      bytes += packed.weights_.back().bytes;
    }
    ASSIGN_OR_RETURN(packed.memory_, LargeBuffer::Allocate(bytes, "packed weights in f32"));
    std::byte* at = packed.memory_.data();
    auto weights = packed.weights_.begin();
    for (const FloatMatrix* matrix : matrices) {
      *weights = ops.pack(matrix->view(), *weights, at, pool);
      at += (weights++)->bytes;
    }
    return packed;
  }
  const GemmWeights& operator[](size_t i) const { return weights_[i]; }
  std::span<const GemmWeights> all() const { return weights_; }

 private:
  LargeBuffer memory_;
  std::vector<GemmWeights> weights_;  // borrow memory_, or the matrices
};

}  // namespace terrace
