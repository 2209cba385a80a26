#include "tools/optimize/hessian.h"

#include <algorithm>
#include <cmath>
#include <eigen3/Eigen/Dense>
#include <numeric>

namespace terrace {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using FloatRows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Tiles, pieces and strips are of one size whatever the number of threads, so that sums are, too.
constexpr size_t kTile = 64;          // inputs
constexpr size_t kPieceTokens = 256;  // of a product
constexpr size_t kStripRows = 32;     // outputs

Eigen::Index Index(size_t i) { return static_cast<Eigen::Index>(i); }

// Columns [first, first + count) of rows [begin, begin + rows) of x, [any, width].
Matrix Block(std::span<const float> x, size_t width, size_t begin, size_t rows, size_t first, size_t count) {
  return Eigen::Map<const FloatRows, 0, Eigen::OuterStride<>>(
             x.data() + begin * width + first, Index(rows), Index(count), Eigen::OuterStride<>(Index(width)))
      .cast<double>();
}

// sum of d H d^T over the rows of d.
double QuadraticForm(const Matrix& d, const Hessian& hessian) {
  const Eigen::Map<const Matrix> h(hessian.values().data(), d.cols(), d.cols());
  const Matrix product = d * h;
  double sum = 0;
  for (Eigen::Index i = 0; i < d.size(); ++i) sum += product.data()[i] * d.data()[i];
  return sum;
}

}  // namespace

Hessian::Hessian(size_t inputs)
    : inputs_(inputs), values_(inputs * inputs), magnitudes_(inputs), largest_(inputs) {
  // Eigen cuts sums by the sizes of caches, and would take those of the machine: other bits on another one.
  [[maybe_unused]] static const bool kIsSet = [] {
    Eigen::setCpuCacheSizes(32 << 10, 512 << 10, 8 << 20);
    return true;
  }();
}

void Hessian::Add(std::span<const float> x, size_t tokens, ThreadPool& pool) {
  CHECK(x.size() == tokens * inputs_, x.size(), " values of ", tokens, " tokens");
  tokens_ += tokens;
  const size_t tiles = (inputs_ + kTile - 1) / kTile;
  // Tile k of the upper triangle, by rows: tiles of row r begin at r * tiles - r * (r - 1) / 2.
  pool.ParallelFor(tiles * (tiles + 1) / 2, /*grain=*/1, [&](size_t begin, size_t end) {
    for (size_t k = begin; k < end; ++k) {
      size_t row = 0, first = 0;
      while (k >= first + tiles - row) first += tiles - row++;
      AddTile(x, tokens, row * kTile, (row + k - first) * kTile);
    }
  });
  pool.ParallelFor(inputs_, kTile, [&](size_t begin, size_t end) {
    for (size_t token = 0; token < tokens; ++token) {
      for (size_t i = begin; i < end; ++i) {
        const float magnitude = std::abs(x[token * inputs_ + i]);
        magnitudes_[i] += magnitude;
        largest_[i] = std::max(largest_[i], magnitude);
      }
    }
  });
}

void Hessian::AddTile(std::span<const float> x, size_t tokens, size_t row, size_t column) {
  const size_t rows = std::min(kTile, inputs_ - row), columns = std::min(kTile, inputs_ - column);
  Matrix sum = Matrix::Zero(Index(rows), Index(columns));
  for (size_t begin = 0; begin < tokens; begin += kPieceTokens) {
    const size_t count = std::min(kPieceTokens, tokens - begin);
    const Matrix left = Block(x, inputs_, begin, count, row, rows),
                 right = Block(x, inputs_, begin, count, column, columns);
    sum.noalias() += left.transpose() * right;
  }
  for (size_t i = 0; i < rows; ++i) {
    for (size_t j = row == column ? i : 0; j < columns; ++j) {
      double& value = values_[(row + i) * inputs_ + column + j];
      value += 2 * sum(Index(i), Index(j));
      values_[(column + j) * inputs_ + row + i] = value;
    }
  }
}

std::vector<float> Hessian::Diagonal() const {
  std::vector<float> out;
  for (size_t i = 0; i < inputs_; ++i) out.push_back(static_cast<float>(Diagonal(i)));
  return out;
}

double Hessian::MeanMagnitude(size_t input) const {
  return tokens_ == 0 ? 0 : magnitudes_[input] / static_cast<double>(tokens_);
}

std::optional<size_t> Hessian::FirstNonFinite() const {
  for (size_t i = 0; i < inputs_; ++i) {
    if (!std::isfinite(magnitudes_[i]) || !std::isfinite(Diagonal(i))) return i;
  }
  return std::nullopt;
}

double DampingOf(const Hessian& hessian, double damping) {
  double sum = 0;
  for (size_t i = 0; i < hessian.inputs(); ++i) sum += hessian.Diagonal(i);
  return sum == 0 ? 1 : damping * sum / static_cast<double>(hessian.inputs());
}

Status NotPositiveDefinite(const Hessian& hessian, double damping) {
  return InvalidArgument(
      "the Hessian of ", hessian.inputs(), " inputs is not positive definite with a damping of ", damping,
      "; a larger one, or more calibration tokens than the ", hessian.tokens(), " there are, may help");
}

StatusOr<InverseHessian> InvertHessian(const Hessian& hessian, double damping, bool by_size) {
  const size_t n = hessian.inputs();
  InverseHessian out = {.order = std::vector<uint32_t>(n), .upper = std::vector<double>(n * n)};
  std::iota(out.order.begin(), out.order.end(), 0);
  if (by_size) {
    std::ranges::stable_sort(
        out.order, [&](uint32_t a, uint32_t b) { return hessian.Diagonal(a) > hessian.Diagonal(b); });
  }
  const double added = DampingOf(hessian, damping);

  // With J the order turned round, J H J = L L^T makes H = R R^T for the upper triangular R = J L J, so that
  // U = R^-1 = J L^-1 J: one factorization, and no inverse of an inverse.
  Matrix turned(Index(n), Index(n));
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j)
      turned(Index(i), Index(j)) = hessian.values()[out.order[n - 1 - i] * n + out.order[n - 1 - j]];
    turned(Index(i), Index(i)) += added;
  }
  const Eigen::LLT<Eigen::Ref<Matrix>> factor(turned);  // in place
  if (factor.info() != Eigen::Success || !turned.diagonal().allFinite())
    return NotPositiveDefinite(hessian, damping);
  Eigen::Map<Matrix> upper(out.upper.data(), Index(n), Index(n));
  upper.setIdentity();
  turned.triangularView<Eigen::Lower>().solveInPlace(upper);
  upper.reverseInPlace();
  return out;
}

double OutputSquares(const FloatMatrix& matrix, const Hessian& hessian, ThreadPool& pool) {
  CHECK(matrix.columns == hessian.inputs(), matrix.columns, " columns for ", hessian.inputs(), " inputs");
  const size_t strips = (matrix.rows + kStripRows - 1) / kStripRows, width = matrix.columns;
  std::vector<double> sums(strips);
  pool.ParallelFor(strips, /*grain=*/1, [&](size_t begin, size_t end) {
    for (size_t strip = begin; strip < end; ++strip) {
      const size_t first = strip * kStripRows, rows = std::min(kStripRows, matrix.rows - first);
      sums[strip] = QuadraticForm(Block(matrix.values, width, first, rows, 0, width), hessian) / 2;
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

FloatMatrix Difference(const FloatMatrix& matrix, const FloatMatrix& original) {
  CHECK(matrix.rows == original.rows && matrix.columns == original.columns, "matrices of two shapes");
  FloatMatrix out = matrix;
  for (size_t i = 0; i < out.values.size(); ++i) out.values[i] -= original.values[i];
  return out;
}

double RelativeOutputError(const FloatMatrix& original, const FloatMatrix& changed, const Hessian& hessian,
                           ThreadPool& pool) {
  return RelativeError(OutputSquares(Difference(changed, original), hessian, pool),
                       OutputSquares(original, hessian, pool));
}

double RelativeWeightError(const FloatMatrix& original, const FloatMatrix& changed) {
  double error = 0, size = 0;
  for (size_t i = 0; i < original.values.size(); ++i) {
    const double value = original.values[i], difference = changed.values[i] - value;
    error += difference * difference;
    size += value * value;
  }
  return RelativeError(error, size);
}

double RelativeError(double error, double size) {
  if (error <= 0) return 0;  // sums of squares may be rounded below 0
  const double relative = std::sqrt(error / size);
  return std::isfinite(relative) ? relative : 1;
}

}  // namespace terrace
