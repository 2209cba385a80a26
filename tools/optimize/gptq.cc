#include "tools/optimize/gptq.h"

#include <algorithm>
#include <eigen3/Eigen/Dense>
#include <vector>

namespace terrace {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Of one size whatever the number of threads.
constexpr size_t kStripRows = 64;     // outputs that one thread takes together
constexpr size_t kPanelInputs = 128;  // after which errors are passed on to all later inputs at once

Eigen::Index Index(size_t i) { return static_cast<Eigen::Index>(i); }

// Some rows of a matrix on their way.
class Strip {
 public:
  Strip(const FloatMatrix& matrix, const RowFormat& format, const InverseHessian& inverse,
        std::span<const float> importance, size_t first, size_t rows)
      : matrix_(matrix),
        format_(format),
        inverse_(inverse),
        importance_(importance),
        in_order_(std::ranges::is_sorted(inverse.order)),
        first_(first),
        weights_(Index(rows), Index(matrix.columns)),
        levels_(rows * format.blocks()),
        codes_(rows * matrix.columns) {
    for (size_t row = 0; row < rows; ++row) {
      for (size_t k = 0; k < matrix.columns; ++k)
        weights_(Index(row), Index(k)) = matrix.Row(first + row)[inverse.order[k]];
    }
  }

  void Round() {
    const Eigen::Map<const Matrix> upper(inverse_.upper.data(), weights_.cols(), weights_.cols());
    if (!in_order_) ChooseFromMatrix();
    const size_t columns = matrix_.columns;
    for (size_t begin = 0; begin < columns; begin += kPanelInputs) {
      const size_t count = std::min(kPanelInputs, columns - begin), end = begin + count;
      Matrix errors(weights_.rows(), Index(count));
      for (size_t k = begin; k < end; ++k) {
        if (in_order_ && k % format_.block() == 0) ChooseFromWeights(k / format_.block());
        for (size_t row = 0; row < rows(); ++row) {
          const double error = RoundOne(row, k) / inverse_.At(k, k);
          errors(Index(row), Index(k - begin)) = error;
          for (size_t later = k + 1; later < end; ++later)
            weights_(Index(row), Index(later)) -= error * inverse_.At(k, later);
        }
      }
      const Eigen::Index left = weights_.cols() - Index(end);
      if (left > 0)
        weights_.rightCols(left).noalias() -=
            errors * upper.block(Index(begin), Index(end), Index(count), left);
    }
  }

  void PutInto(QuantizedMatrix& out) const {
    const size_t block = format_.block();
    for (size_t row = 0; row < rows(); ++row) {
      for (size_t i = 0; i < format_.blocks(); ++i) {
        out.Put(first_ + row, i, levels_[row * format_.blocks() + i],
                std::span(codes_).subspan(row * matrix_.columns + i * block, block));
      }
    }
  }

 private:
  size_t rows() const { return static_cast<size_t>(weights_.rows()); }

  void Choose(size_t row, size_t block, std::span<const float> values) {
    const std::span<const float> importance =
        importance_.empty() ? importance_ : importance_.subspan(block * format_.block(), format_.block());
    levels_[row * format_.blocks() + block] = format_.Choose(values, importance);
  }

  void ChooseFromMatrix() {
    for (size_t row = 0; row < rows(); ++row) {
      for (size_t i = 0; i < format_.blocks(); ++i)
        Choose(row, i, matrix_.Row(first_ + row).subspan(i * format_.block(), format_.block()));
    }
  }

  void ChooseFromWeights(size_t block) {
    std::vector<float> values(format_.block());
    for (size_t row = 0; row < rows(); ++row) {
      for (size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<float>(weights_(Index(row), Index(block * format_.block() + i)));
      Choose(row, block, values);
    }
  }

  // The code of the k-th input of a row; returns what rounding took from the weight.
  double RoundOne(size_t row, size_t k) {
    const size_t column = inverse_.order[k];
    const BlockLevels& levels = levels_[row * format_.blocks() + column / format_.block()];
    const WeightLevel& level = levels.levels[column % format_.block() / format_.shared()];
    const double weight = weights_(Index(row), Index(k));
    const int code = CodeOf(level, format_.codes(), static_cast<float>(weight));
    codes_[row * matrix_.columns + column] = static_cast<uint8_t>(code);
    return weight - level.ValueOf(code);
  }

  const FloatMatrix& matrix_;
  const RowFormat& format_;
  const InverseHessian& inverse_;
  const std::span<const float> importance_;  // by column; empty: plain levels
  const bool in_order_;
  const size_t first_;
  Matrix weights_;  // [rows, inputs in the order of inverse_]
  std::vector<BlockLevels> levels_;
  std::vector<uint8_t> codes_;  // [rows, columns]
};

}  // namespace

QuantizedMatrix Gptq(const FloatMatrix& matrix, const RowFormat& format, const InverseHessian& inverse,
                     const GptqOptions& options, ThreadPool& pool) {
  CHECK(matrix.columns == inverse.inputs() && matrix.columns == format.columns(), "matrices of two shapes");
  std::vector<float> importance;
  if (options.searches_levels) {
    importance.resize(matrix.columns);
    for (size_t k = 0; k < importance.size(); ++k)
      importance[inverse.order[k]] = static_cast<float>(1 / (inverse.At(k, k) * inverse.At(k, k)));
  }
  QuantizedMatrix out(format, matrix.rows);
  pool.ParallelFor((matrix.rows + kStripRows - 1) / kStripRows, /*grain=*/1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const size_t first = i * kStripRows;
      Strip strip(matrix, format, inverse, importance, first, std::min(kStripRows, matrix.rows - first));
      strip.Round();
      strip.PutInto(out);
    }
  });
  return out;
}

}  // namespace terrace
