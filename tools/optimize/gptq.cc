#include "tools/optimize/gptq.h"

#include <algorithm>
#include <vector>

#include "tools/optimize/compensated_rows.h"

namespace terrace {
namespace {

// Some rows of a matrix on their way.
class Strip {
 public:
  Strip(const FloatMatrix& matrix, const RowFormat& format, const InverseHessian& inverse,
        std::span<const float> importance, bool keeps_zeros, size_t first, size_t rows)
      : matrix_(matrix),
        format_(format),
        inverse_(inverse),
        importance_(importance),
        keeps_zeros_(keeps_zeros),
        in_order_(std::ranges::is_sorted(inverse.order)),
        first_(first),
        weights_(matrix, inverse, first, rows),
        levels_(rows * format.blocks()),
        codes_(rows * matrix.columns) {}

  void Round() {
    if (!in_order_) ChooseFromMatrix();
    const auto reach = [&](size_t k) {
      if (in_order_ && k % format_.block() == 0) ChooseFromWeights(k / format_.block());
    };
    for (size_t begin = 0; begin < matrix_.columns; begin += kPanelInputs) {
      weights_.ReplacePanel(begin, std::min(begin + kPanelInputs, matrix_.columns), reach,
                            [&](size_t row, size_t k) { return RoundOne(row, k); });
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
  size_t rows() const { return weights_.rows(); }

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
        values[i] = static_cast<float>(weights_.At(row, block * format_.block() + i));
      Choose(row, block, values);
    }
  }

  // The code of the k-th input of a row; returns what rounding took from the weight.
  double RoundOne(size_t row, size_t k) {
    const size_t column = inverse_.order[k];
    const BlockLevels& levels = levels_[row * format_.blocks() + column / format_.block()];
    const WeightLevel& level = levels.levels[column % format_.block() / format_.shared()];
    const double weight = weights_.At(row, k);
    const bool stays_zero = keeps_zeros_ && matrix_.Row(first_ + row)[column] == 0;
    const int code = CodeOf(level, format_.codes(), stays_zero ? 0 : static_cast<float>(weight));
    codes_[row * matrix_.columns + column] = static_cast<uint8_t>(code);
    return weight - level.ValueOf(code);
  }

  const FloatMatrix& matrix_;
  const RowFormat& format_;
  const InverseHessian& inverse_;
  const std::span<const float> importance_;  // by column; empty: plain levels
  const bool keeps_zeros_;
  const bool in_order_;
  const size_t first_;
  CompensatedRows weights_;
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
  pool.ParallelFor((matrix.rows + kCompensatedRows - 1) / kCompensatedRows, /*grain=*/1,
                   [&](size_t begin, size_t end) {
                     for (size_t i = begin; i < end; ++i) {
                       const size_t first = i * kCompensatedRows;
                       Strip strip(matrix, format, inverse, importance, options.keeps_zeros, first,
                                   std::min(kCompensatedRows, matrix.rows - first));
                       strip.Round();
                       strip.PutInto(out);
                     }
                   });
  return out;
}

}  // namespace terrace
