#include "kernels/quant/e4m3_row.h"

#include <algorithm>
#include <cmath>

#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

constexpr float kLargest = 448;

}  // namespace

float QuantizeE4M3(std::span<const float> row, uint8_t* codes) {
  float largest = 0;
  for (const float value : row) largest = std::max(largest, std::abs(value));
  const float scale = largest / kLargest;
  for (size_t i = 0; i < row.size(); ++i) {
    // A quotient may pass the largest: by its rounding, by more where the scale is subnormal.
    codes[i] = E4M3FromFloat(scale == 0 ? 0.0f : std::clamp(row[i] / scale, -kLargest, kLargest));
  }
  return scale;
}

}  // namespace terrace
