#include "tools/optimize/level_search.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace terrace {
namespace {

struct Candidate {
  WeightLevel level;
  double error;
};

double WeightedError(const WeightLevel& level, const CodeFormat& format, std::span<const float> values,
                     std::span<const float> importance) {
  double sum = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double error = level.ValueOf(CodeOf(level, format, values[i])) - values[i];
    sum += importance[i] * error * error;
  }
  return sum;
}

// The scale that serves best the codes that `level` gives: least squares. 0 where these are all zero.
float ScaleForCodes(const WeightLevel& level, const CodeFormat& format, std::span<const float> values,
                    std::span<const float> importance) {
  double products = 0, squares = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double code = CodeOf(level, format, values[i]) - level.zero;
    products += importance[i] * code * values[i];
    squares += importance[i] * code * code;
  }
  return squares > 0 ? static_cast<float>(products / squares) : 0;
}

// Keeps the better of two, the first where they are equal.
void Try(const WeightLevel& level, const CodeFormat& format, std::span<const float> values,
         std::span<const float> importance, Candidate& best) {
  const double error = WeightedError(level, format, values, importance);
  if (error < best.error) best = {level, error};
}

// Scales at which the largest value lies a little within or beyond the outermost code.
void TrySymmetric(const CodeFormat& format, std::span<const float> values, std::span<const float> importance,
                  Candidate& best) {
  const WeightLevel plain = best.level;
  const int lowest = format.least - format.zero, highest = format.most - format.zero;
  const auto edge = static_cast<float>(std::max(highest, -lowest));
  for (int k = -9; k <= 9; ++k) {
    WeightLevel level = plain;
    level.scale = plain.scale * edge / (edge + 0.1f * static_cast<float>(k));
    level.scale = ScaleForCodes(level, format, values, importance);
    if (level.scale != 0) Try(level, format, values, importance, best);
  }
}

// The straight line through values over codes: scale and minimum by least squares.
void TryMinimum(const CodeFormat& format, std::span<const float> values, std::span<const float> importance,
                Candidate& best) {
  const WeightLevel plain = best.level;
  const auto codes = static_cast<float>(format.most);
  for (int k = 0; k <= 36; ++k) {
    WeightLevel level = plain;
    level.scale = plain.scale * codes / (codes - 0.9f + 0.05f * static_cast<float>(k));
    double all = 0, sum_code = 0, sum_square = 0, sum_value = 0, sum_product = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const double weight = importance[i], code = CodeOf(level, format, values[i]);
      all += weight;
      sum_code += weight * code;
      sum_square += weight * code * code;
      sum_value += weight * values[i];
      sum_product += weight * code * values[i];
    }
    const double determinant = all * sum_square - sum_code * sum_code;
    if (!(determinant > 0)) continue;
    double scale = (all * sum_product - sum_code * sum_value) / determinant;
    double lowest = (sum_square * sum_value - sum_code * sum_product) / determinant;
    if (lowest > 0) {  // levels begin at 0 or below
      lowest = 0;
      scale = sum_product / sum_square;
    }
    if (!(scale > 0)) continue;
    level.scale = static_cast<float>(scale);
    level.minimum = static_cast<float>(-lowest);
    Try(level, format, values, importance, best);
  }
}

// Ranges that leave the outermost values outside, as the file will store their scale and zero point.
void TryZeroPoint(DType dtype, const CodeFormat& format, std::span<const float> values,
                  std::span<const float> importance, Candidate& best) {
  const WeightLevel plain = best.level;
  best.error = DBL_MAX;  // until one is stored
  const auto try_stored = [&](const WeightLevel& level) {
    WeightLevel stored;
    LevelsOf(dtype, HeadOf(dtype, std::span(&level, 1)), std::span(&stored, 1));
    const double error = WeightedError(stored, format, values, importance);
    if (error < best.error) best = {level, error};
    return stored;
  };
  for (int k = 0; k <= 20; ++k) {
    const float share = 1 - 0.025f * static_cast<float>(k);
    WeightLevel level = try_stored({.scale = share * plain.scale, .minimum = share * plain.minimum});
    level.scale = ScaleForCodes(level, format, values, importance);
    if (!(level.scale > 0)) continue;
    level.minimum = level.scale * static_cast<float>(level.zero);
    level.zero = 0;
    try_stored(level);
  }
}

}  // namespace

WeightLevel SearchLevel(DType dtype, std::span<const float> values, std::span<const float> importance) {
  const CodeFormat format = CodeFormatOf(dtype);
  const WeightLevel plain = PlainLevel(dtype, values);
  if (std::abs(plain.scale) < FLT_MIN) return plain;  // zeros
  Candidate best = {plain, WeightedError(plain, format, values, importance)};
  switch (format.kind) {
    case LevelKind::kSymmetric:
      TrySymmetric(format, values, importance, best);
      break;
    case LevelKind::kMinimum:
      TryMinimum(format, values, importance, best);
      break;
    case LevelKind::kZeroPoint:
      TryZeroPoint(dtype, format, values, importance, best);
      break;
  }
  return best.level;
}

}  // namespace terrace
