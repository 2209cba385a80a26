// Rows of a matrix whose inputs are replaced one after the other, while those that are left take over what
// each replacement did to the outputs: the walk that GPTQ and SparseGPT share (Frantar et al., "GPTQ", ICLR
// 2023; Frantar and Alistarh, "SparseGPT", ICML 2023). One thread at a time; for the sources of this folder.
#pragma once

#include <algorithm>
#include <cstddef>
#include <eigen3/Eigen/Dense>

#include "tools/optimize/float_layer.h"
#include "tools/optimize/hessian.h"

namespace terrace {

// Of one size whatever the number of threads.
inline constexpr size_t kCompensatedRows = 64;  // outputs that one thread takes together
inline constexpr size_t kPanelInputs = 128;  // after which errors are passed on to all later inputs at once

class CompensatedRows {
 public:
  // Rows [first, first + rows) of `matrix`, in the order of inputs of `inverse`, which outlives the object.
  CompensatedRows(const FloatMatrix& matrix, const InverseHessian& inverse, size_t first, size_t rows)
      : inverse_(inverse), weights_(Index(rows), Index(matrix.columns)) {
    for (size_t row = 0; row < rows; ++row) {
      for (size_t k = 0; k < matrix.columns; ++k)
        weights_(Index(row), Index(k)) = matrix.Row(first + row)[inverse.order[k]];
    }
  }

  size_t rows() const { return static_cast<size_t>(weights_.rows()); }
  double& At(size_t row, size_t k) { return weights_(Index(row), Index(k)); }  // of the k-th input
  double At(size_t row, size_t k) const { return weights_(Index(row), Index(k)); }

  // Replaces the inputs [begin, end), which are a panel; panels come in rising order. `reach(k)` is called
  // before input k, `replace(row, k)` returns what its replacement takes from the weight.
  template <typename Reach, typename Replace>
  void ReplacePanel(size_t begin, size_t end, Reach reach, Replace replace) {
    const size_t count = end - begin;
    Matrix errors(weights_.rows(), Index(count));
    for (size_t k = begin; k < end; ++k) {
      reach(k);
      for (size_t row = 0; row < rows(); ++row) {
        const double error = replace(row, k) / inverse_.At(k, k);
        errors(Index(row), Index(k - begin)) = error;
        for (size_t later = k + 1; later < end; ++later) At(row, later) -= error * inverse_.At(k, later);
      }
    }
    const Eigen::Index left = weights_.cols() - Index(end);
    if (left == 0) return;
    const Eigen::Map<const Matrix> upper(inverse_.upper.data(), weights_.cols(), weights_.cols());
    weights_.rightCols(left).noalias() -= errors * upper.block(Index(begin), Index(end), Index(count), left);
  }

 private:
  using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  static Eigen::Index Index(size_t i) { return static_cast<Eigen::Index>(i); }

  const InverseHessian& inverse_;
  Matrix weights_;  // [rows, inputs in the order of inverse_]
};

}  // namespace terrace
