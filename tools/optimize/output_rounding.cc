#include "tools/optimize/output_rounding.h"

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/status.h"

namespace terrace {
namespace {

constexpr size_t kMostBlock = 256;
constexpr int kPasses = 4;                             // over the blocks of a row, at most
constexpr int kLeastPercent = 70, kMostPercent = 104;  // of a plain level's scale

using Errors = std::array<double, kMostBlock>;  // of a block's columns

// What levels make of a block's values.
struct Rounded {
  BlockLevels levels;
  std::array<uint8_t, kMostBlock> codes = {};
  Errors errors = {};  // what the code stands for, less the value
};

// A row of a matrix on its way.
class Row {
 public:
  Row(std::span<const float> values, const RowFormat& format, const Hessian& hessian,
      std::span<const float> importance)
      : values_(values), format_(format), hessian_(hessian), slopes_(values.size()) {
    for (size_t i = 0; i < format.blocks(); ++i) {
      blocks_.push_back(Round(i, format.Choose(Part(values, i), Part(importance, i))));
      AddToSlopes(i, blocks_.back().errors);
    }
  }

  // Whether a block got better levels.
  bool Improve() {
    bool is_better = false;
    for (size_t i = 0; i < blocks_.size(); ++i) is_better |= Improve(i);
    return is_better;
  }

  void PutInto(QuantizedMatrix& out, size_t row) const {
    for (size_t i = 0; i < blocks_.size(); ++i)
      out.Put(row, i, blocks_[i].levels, std::span(blocks_[i].codes).first(format_.block()));
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

  // slopes_ += H * change
  void AddToSlopes(size_t block, const Errors& change) {
    const size_t columns = values_.size();
    for (size_t i = 0; i < format_.block(); ++i) {
      if (change[i] == 0) continue;
      const double* h = hessian_.values().data() + (block * format_.block() + i) * columns;
      for (size_t k = 0; k < columns; ++k) slopes_[k] += change[i] * h[k];
    }
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

  // The best of the plain levels made narrower or wider, if that is better than what the block has.
  bool Improve(size_t block) {
    std::optional<Rounded> best;
    Errors best_change = {};
    double least = 0;
    const BlockLevels plain = format_.Choose(Part(values_, block), {});
    for (int percent = kLeastPercent; percent <= kMostPercent; ++percent) {
      const Rounded tried = Round(block, Scaled(plain, 0.01f * static_cast<float>(percent)));
      Errors change = {};
      for (size_t i = 0; i < format_.block(); ++i) change[i] = tried.errors[i] - blocks_[block].errors[i];
      const double cost = Cost(block, change);
      if (!(cost < least)) continue;
      least = cost;
      best = tried;
      best_change = change;
    }
    if (!best) return false;
    AddToSlopes(block, best_change);
    blocks_[block] = *best;
    return true;
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
  const RowFormat& format_;
  const Hessian& hessian_;
  std::vector<Rounded> blocks_;
  std::vector<double> slopes_;  // H * errors
};

}  // namespace

QuantizedMatrix RoundForOutputs(const FloatMatrix& matrix, const RowFormat& format, const Hessian& hessian,
                                ThreadPool& pool) {
  CHECK(matrix.columns == hessian.inputs() && matrix.columns == format.columns(), "matrices of two shapes");
  const std::vector<float> importance = hessian.Diagonal();
  if (format.dtype() == DType::kInt8 || format.block() > kMostBlock)
    return RoundToNearest(matrix, format, importance, pool);
  QuantizedMatrix out(format, matrix.rows);
  pool.ParallelFor(matrix.rows, /*grain=*/4, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      Row row(matrix.Row(i), format, hessian, importance);
      for (int pass = 0; pass < kPasses && row.Improve(); ++pass) {
      }
      row.PutInto(out, i);
    }
  });
  return out;
}

}  // namespace terrace
