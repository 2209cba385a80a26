#include "tools/optimize/weight_pruning.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "tools/optimize/compensated_rows.h"

namespace terrace {
namespace {

// Marks `count` of the smallest scores; of equal ones the first.
template <typename Score>
void MarkSmallest(std::span<const Score> scores, size_t count, std::span<uint8_t> marks) {
  if (count == 0) return;
  std::vector<Score> order(scores.begin(), scores.end());
  const auto last = order.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(order.begin(), last, order.end());
  const Score limit = *last;
  size_t at_limit =
      count - static_cast<size_t>(std::ranges::count_if(scores, [&](Score s) { return s < limit; }));
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] > limit || (scores[i] == limit && at_limit == 0)) continue;
    if (scores[i] == limit) --at_limit;
    marks[i] = 1;
  }
}

// Of the first `count` weights of a pattern's share.
size_t ZerosOf(const SparsityPattern& pattern, size_t count) {
  return static_cast<size_t>(std::llround(pattern.share * static_cast<double>(count)));
}

// Rows on their way, and which of their weights in the panel go.
class Strip {
 public:
  Strip(const FloatMatrix& matrix, const InverseHessian& inverse, size_t first, size_t rows)
      : inverse_(inverse), weights_(matrix, inverse, first, rows) {}

  size_t rows() const { return weights_.rows(); }

  // What the removal of each weight of the panel costs, [rows, inputs of the panel].
  void Score(size_t begin, size_t end, std::span<double> scores) const {
    for (size_t row = 0; row < rows(); ++row) {
      for (size_t k = begin; k < end; ++k) scores[row * (end - begin) + k - begin] = Cost(row, k);
    }
  }

  // `marks`, likewise, of those that go; with groups they are chosen when a group is reached.
  void Prune(const SparsityPattern& pattern, size_t begin, size_t end, std::span<uint8_t> marks) {
    const size_t width = end - begin;
    const auto choose = [&](size_t k) {
      if (!pattern.has_groups() || k % pattern.of != 0) return;
      std::vector<double> costs(pattern.of);
      for (size_t row = 0; row < rows(); ++row) {
        for (size_t i = 0; i < costs.size(); ++i) costs[i] = Cost(row, k + i);
        MarkSmallest<double>(costs, pattern.of - pattern.kept,
                             marks.subspan(row * width + k - begin, pattern.of));
      }
    };
    weights_.ReplacePanel(begin, end, choose, [&](size_t row, size_t k) {
      if (marks[row * width + k - begin] == 0) return 0.0;
      return std::exchange(weights_.At(row, k), 0.0);
    });
  }

  void PutInto(FloatMatrix& out, size_t first) const {
    for (size_t row = 0; row < rows(); ++row) {
      for (size_t k = 0; k < out.columns; ++k)
        out.Row(first + row)[k] = static_cast<float>(weights_.At(row, k));
    }
  }

 private:
  double Cost(size_t row, size_t k) const {
    const double weight = weights_.At(row, k) / inverse_.At(k, k);
    return weight * weight;
  }

  const InverseHessian& inverse_;
  CompensatedRows weights_;
};

}  // namespace

bool HasPattern(const FloatMatrix& matrix, const SparsityPattern& pattern) {
  CHECK(pattern.has_groups(), "a pattern without groups");
  if (matrix.columns % pattern.of != 0) return false;
  for (size_t first = 0; first < matrix.values.size(); first += pattern.of) {
    const auto group = std::span(matrix.values).subspan(first, pattern.of);
    const auto zeros = static_cast<size_t>(std::ranges::count(group, 0.0f));
    if (zeros + pattern.kept < pattern.of) return false;
  }
  return true;
}

FloatMatrix PruneByMagnitude(const FloatMatrix& matrix, const SparsityPattern& pattern) {
  FloatMatrix out = matrix;
  std::vector<float> sizes(matrix.values.size());
  std::ranges::transform(matrix.values, sizes.begin(), [](float x) { return std::abs(x); });
  std::vector<uint8_t> marks(sizes.size());
  if (pattern.has_groups()) {
    CHECK(matrix.columns % pattern.of == 0, matrix.columns, " columns in groups of ", pattern.of);
    for (size_t i = 0; i < sizes.size(); i += pattern.of)
      MarkSmallest<float>(std::span(sizes).subspan(i, pattern.of), pattern.of - pattern.kept,
                          std::span(marks).subspan(i, pattern.of));
  } else {
    MarkSmallest<float>(sizes, ZerosOf(pattern, sizes.size()), marks);
  }
  for (size_t i = 0; i < marks.size(); ++i) {
    if (marks[i] != 0) out.values[i] = 0;
  }
  return out;
}

FloatMatrix SparseGpt(const FloatMatrix& matrix, const SparsityPattern& pattern,
                      const InverseHessian& inverse, ThreadPool& pool) {
  const size_t rows = matrix.rows, columns = matrix.columns;
  CHECK(columns == inverse.inputs() && std::ranges::is_sorted(inverse.order), "inputs of another matrix");
  CHECK(!pattern.has_groups() || columns % pattern.of == 0, columns, " columns in groups of ", pattern.of);
  std::vector<Strip> strips;
  strips.reserve((rows + kCompensatedRows - 1) / kCompensatedRows);
  for (size_t first = 0; first < rows; first += kCompensatedRows)
    strips.emplace_back(matrix, inverse, first, std::min(kCompensatedRows, rows - first));
  const auto each_strip = [&](const std::function<void(Strip&, size_t first)>& body) {
    pool.ParallelFor(strips.size(), /*grain=*/1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) body(strips[i], i * kCompensatedRows);
    });
  };
  for (size_t begin = 0; begin < columns; begin += kPanelInputs) {
    const size_t end = std::min(begin + kPanelInputs, columns), width = end - begin;
    std::vector<uint8_t> marks(rows * width);
    if (!pattern.has_groups()) {
      std::vector<double> scores(rows * width);
      each_strip([&](Strip& strip, size_t first) {
        strip.Score(begin, end, std::span(scores).subspan(first * width, strip.rows() * width));
      });
      MarkSmallest<double>(scores, ZerosOf(pattern, rows * end) - ZerosOf(pattern, rows * begin), marks);
    }
    each_strip([&](Strip& strip, size_t first) {
      strip.Prune(pattern, begin, end, std::span(marks).subspan(first * width, strip.rows() * width));
    });
  }
  FloatMatrix out = {rows, columns, std::vector<float>(rows * columns)};
  each_strip([&](Strip& strip, size_t first) { strip.PutInto(out, first); });
  return out;
}

}  // namespace terrace
