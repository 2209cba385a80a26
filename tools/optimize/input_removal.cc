#include "tools/optimize/input_removal.h"

#include <algorithm>
#include <eigen3/Eigen/Dense>
#include <vector>

namespace terrace {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr size_t kStripRows = 32;  // outputs, whatever the number of threads

Eigen::Index Index(size_t i) { return static_cast<Eigen::Index>(i); }

// Rows `rows` and columns `columns` of H.
Matrix Part(const Hessian& hessian, std::span<const uint32_t> rows, std::span<const uint32_t> columns) {
  Matrix out(Index(rows.size()), Index(columns.size()));
  for (size_t i = 0; i < rows.size(); ++i) {
    for (size_t j = 0; j < columns.size(); ++j)
      out(Index(i), Index(j)) = hessian.values()[rows[i] * hessian.inputs() + columns[j]];
  }
  return out;
}

std::vector<uint32_t> Others(size_t count, std::span<const uint32_t> kept) {
  std::vector<uint32_t> others;
  for (uint32_t i = 0; i < count; ++i) {
    if (!std::ranges::binary_search(kept, i)) others.push_back(i);
  }
  return others;
}

}  // namespace

double RemovalCost(const FloatMatrix& matrix, const Hessian& hessian, size_t first, size_t count) {
  CHECK(matrix.columns == hessian.inputs() && first + count <= matrix.columns, "inputs of another matrix");
  double sum = 0;
  std::vector<double> products(count);
  for (size_t row = 0; row < matrix.rows; ++row) {
    const auto weights = matrix.Row(row).subspan(first, count);
    for (size_t i = 0; i < count; ++i) {
      const auto h = hessian.values().subspan((first + i) * hessian.inputs() + first, count);
      double product = 0;
      for (size_t j = 0; j < count; ++j) product += h[j] * weights[j];
      sum += product * weights[i];
    }
  }
  return std::max(sum, 0.0) / 2;  // rounding may bring it below 0
}

StatusOr<FloatMatrix> WithInputs(const FloatMatrix& matrix, const Hessian& hessian,
                                 std::span<const uint32_t> kept, bool repair, double damping,
                                 ThreadPool& pool) {
  CHECK(matrix.columns == hessian.inputs() && !kept.empty(), "inputs of another matrix");
  const std::vector<uint32_t> removed = Others(matrix.columns, kept);
  FloatMatrix out = matrix;
  if (removed.empty()) return out;
  for (size_t row = 0; row < out.rows; ++row) {
    for (const uint32_t i : removed) out.Row(row)[i] = 0;
  }
  if (!repair) return out;

  Matrix among_kept = Part(hessian, kept, kept);
  among_kept.diagonal().array() += DampingOf(hessian, damping);
  const Eigen::LLT<Eigen::Ref<Matrix>> factor(among_kept);  // in place
  if (factor.info() != Eigen::Success || !among_kept.diagonal().allFinite())
    return NotPositiveDefinite(hessian, damping);
  const Matrix shares = factor.solve(Part(hessian, kept, removed));  // [kept, removed]
  pool.ParallelFor((matrix.rows + kStripRows - 1) / kStripRows, /*grain=*/1, [&](size_t begin, size_t end) {
    for (size_t strip = begin; strip < end; ++strip) {
      const size_t first = strip * kStripRows, rows = std::min(kStripRows, matrix.rows - first);
      Matrix weights(Index(rows), Index(removed.size()));
      for (size_t row = 0; row < rows; ++row) {
        for (size_t j = 0; j < removed.size(); ++j)
          weights(Index(row), Index(j)) = matrix.Row(first + row)[removed[j]];
      }
      const Matrix taken = weights * shares.transpose();  // [rows, kept]
      for (size_t row = 0; row < rows; ++row) {
        for (size_t i = 0; i < kept.size(); ++i) {
          float& weight = out.Row(first + row)[kept[i]];
          weight = static_cast<float>(weight + taken(Index(row), Index(i)));
        }
      }
    }
  });
  return out;
}

FloatMatrix RowsAt(const FloatMatrix& matrix, std::span<const uint32_t> rows) {
  FloatMatrix out = {rows.size(), matrix.columns, {}};
  out.values.reserve(rows.size() * matrix.columns);
  for (const uint32_t row : rows) {
    const auto values = matrix.Row(row);
    out.values.insert(out.values.end(), values.begin(), values.end());
  }
  return out;
}

FloatMatrix ColumnsAt(const FloatMatrix& matrix, std::span<const uint32_t> columns) {
  FloatMatrix out = {matrix.rows, columns.size(), {}};
  out.values.reserve(matrix.rows * columns.size());
  for (size_t row = 0; row < matrix.rows; ++row) {
    for (const uint32_t column : columns) out.values.push_back(matrix.Row(row)[column]);
  }
  return out;
}

}  // namespace terrace
