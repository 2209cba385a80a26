#include "tools/optimize/output_rounding.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "base/status.h"

namespace terrace {
namespace {

constexpr size_t kMostBlock = 256;
constexpr size_t kRowsTogether = 16;
// Of the Hessian: with kMostBlock rows 512 KiB, which a core's cache holds.
constexpr size_t kTileColumns = 256;
constexpr int kPasses = 4;                             // over the blocks of a row, at most
constexpr int kLeastPercent = 70, kMostPercent = 104;  // of a plain level's scale

using Errors = std::array<double, kMostBlock>;  // of a block's columns

// What levels make of a block's values.
struct Rounded {
  BlockLevels levels;
  std::array<uint8_t, kMostBlock> codes = {};
  Errors errors = {};  // what the code stands for, less the value
};

// A row of a matrix on its way into `out`. Begin, and Improve where it says so, change a block; AddToSlopes
// follows, for all slopes, before the next block.
class Row {
 public:
  Row(const FloatMatrix& matrix, size_t row, const Hessian& hessian, QuantizedMatrix& out)
      : values_(matrix.Row(row)),
        row_(row),
        format_(out.format()),
        hessian_(hessian),
        out_(out),
        errors_(values_.size()),
        slopes_(values_.size()) {}

  // The levels a block begins with; its errors change from none.
  void Begin(size_t block, std::span<const float> importance) {
    const Rounded first = Round(block, format_.Choose(Part(values_, block), Part(importance, block)));
    change_ = first.errors;
    Take(block, first);
  }

  // The best of the plain levels made narrower or wider, if that is better than what the block has; false:
  // nothing has changed.
  bool Improve(size_t block) {
    const std::span<const double> errors = Part(std::span<const double>(errors_), block);
    std::optional<Rounded> best;
    double least = 0;
    const BlockLevels plain = format_.Choose(Part(values_, block), {});
    for (int percent = kLeastPercent; percent <= kMostPercent; ++percent) {
      const Rounded tried = Round(block, Scaled(plain, 0.01f * static_cast<float>(percent)));
      Errors change = {};
      for (size_t i = 0; i < format_.block(); ++i) change[i] = tried.errors[i] - errors[i];
      const double cost = Cost(block, change);
      if (!(cost < least)) continue;
      least = cost;
      best = tried;
      change_ = change;
    }
    if (!best) return false;
    Take(block, *best);
    return true;
  }

  // slopes += H * change, of the last change, of `block`, and of `count` slopes from `first` on.
  void AddToSlopes(size_t block, size_t first, size_t count) {
    double* const slopes = slopes_.data() + first;
    for (size_t i = 0; i < format_.block(); ++i) {
      const double change = change_[i];
      if (change == 0) continue;
      const double* const h =
          hessian_.values().data() + (block * format_.block() + i) * values_.size() + first;
      for (size_t k = 0; k < count; ++k) slopes[k] += change * h[k];
    }
  }

 private:
  template <typename T>
  std::span<T> Part(std::span<T> of_row, size_t block) const {
    return of_row.subspan(block * format_.block(), format_.block());
  }

  Rounded Round(size_t block, const BlockLevels& levels) const {
    Rounded out = {.levels = levels};
    const auto values = Part(values_, block);
    for (size_t i = 0; i < values.size(); ++i) {
      const WeightLevel& level = levels.levels[i / format_.shared()];
      const int code = CodeOf(level, format_.codes(), values[i]);
      out.codes[i] = static_cast<uint8_t>(code);
      out.errors[i] = double{level.ValueOf(code)} - values[i];
    }
    return out;
  }

  void Take(size_t block, const Rounded& rounded) {
    const size_t size = format_.block();
    std::copy_n(rounded.errors.begin(), size, errors_.data() + block * size);
    out_.Put(row_, block, rounded.levels, std::span(rounded.codes).first(size));
  }

  // What the outputs lose more by a change of a block's errors: 2 * change * H e + change * H * change.
  double Cost(size_t block, const Errors& change) const {
    const size_t size = format_.block(), first = block * size;
    Errors sums = {};
    for (size_t i = 0; i < size; ++i) {
      if (change[i] == 0) continue;
      const double* h = hessian_.values().data() + (first + i) * values_.size() + first;
      for (size_t k = 0; k < size; ++k) sums[k] += change[i] * h[k];
    }
    double cost = 0;
    for (size_t i = 0; i < size; ++i) cost += change[i] * (2 * slopes_[first + i] + sums[i]);
    return cost;
  }

  // `plain` with its scales and minima times `share`, as a file stores that.
  BlockLevels Scaled(const BlockLevels& plain, float share) const {
    BlockLevels out;
    const size_t count = format_.block() / format_.shared();
    for (size_t i = 0; i < count; ++i) {
      WeightLevel& level = out.levels[i] = plain.levels[i];
      level.scale *= share;
      level.minimum *= share;
      if (format_.codes().kind == LevelKind::kZeroPoint) {  // HeadOf makes it of the minimum
        level.minimum = level.scale * static_cast<float>(level.zero);
        level.zero = 0;
      }
    }
    const auto levels = std::span(out.levels).first(count);
    out.head = HeadOf(format_.dtype(), levels);
    LevelsOf(format_.dtype(), out.head, levels);
    return out;
  }

  const std::span<const float> values_;
  const size_t row_;
  const RowFormat& format_;
  const Hessian& hessian_;
  QuantizedMatrix& out_;
  std::vector<double> errors_;
  std::vector<double> slopes_;  // H * errors
  Errors change_ = {};          // of the block that was changed last
};

// Each tile of the Hessian, which no cache holds (1.6 GB of 14,336 inputs), is read once for all of `rows`,
// and each slope adds the same in the same order as with its row alone.
void AddToSlopes(const std::set<Row*>& rows, size_t block, size_t inputs) {
  for (size_t first = 0; first < inputs; first += kTileColumns) {
    for (Row* const row : rows) row->AddToSlopes(block, first, std::min(kTileColumns, inputs - first));
  }
}

// Rows take turns at each block; one of them does not depend on another.
void RoundTogether(std::span<Row> rows, const RowFormat& format, std::span<const float> importance) {
  std::set<Row*> unsettled;
  for (Row& row : rows) unsettled.insert(&row);
  for (size_t block = 0; block < format.blocks(); ++block) {
    for (Row* const row : unsettled) row->Begin(block, importance);
    AddToSlopes(unsettled, block, format.columns());
  }
  for (int pass = 0; pass < kPasses && !unsettled.empty(); ++pass) {
    std::set<Row*> better;  // in this pass
    for (size_t block = 0; block < format.blocks(); ++block) {
      std::set<Row*> changed;
      for (Row* const row : unsettled) {
        if (row->Improve(block)) changed.insert(row);
      }
      AddToSlopes(changed, block, format.columns());
      better.merge(changed);
    }
    unsettled = std::move(better);
  }
}

}  // namespace

QuantizedMatrix RoundForOutputs(const FloatMatrix& matrix, const RowFormat& format, const Hessian& hessian,
                                ThreadPool& pool) {
  CHECK(matrix.columns == hessian.inputs() && matrix.columns == format.columns(), "matrices of two shapes");
  const std::vector<float> importance = hessian.Diagonal();
  if (format.dtype() == DType::kInt8 || format.block() > kMostBlock)
    return RoundToNearest(matrix, format, importance, pool);
  QuantizedMatrix out(format, matrix.rows);
  const size_t groups = (matrix.rows + kRowsTogether - 1) / kRowsTogether;
  pool.ParallelFor(groups, /*grain=*/1, [&](size_t begin, size_t end) {
    for (size_t group = begin; group < end; ++group) {
      const size_t first = group * kRowsTogether, count = std::min(kRowsTogether, matrix.rows - first);
      std::vector<Row> rows;
      rows.reserve(count);
      for (size_t i = 0; i < count; ++i) rows.emplace_back(matrix, first + i, hessian, out);
      RoundTogether(rows, format, importance);
    }
  });
  return out;
}

}  // namespace terrace
