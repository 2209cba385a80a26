// What RMSNorm (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019) multiplies a row by, before
// the weights. Included once per instruction set, after simd/vec16_*.h.
#pragma once

#include <cstddef>

namespace terrace {
namespace {

// 1 / sqrt(mean(x^2) + epsilon); NaN where the squares overflow: all outputs would silently be 0.
inline float RmsNormScale(const float* x, size_t width, float epsilon) {
  const size_t whole = width / 16 * 16;
  Vec16 squares = Zero();
  for (size_t i = 0; i < whole; i += 16) squares = Fma(Load(x + i), Load(x + i), squares);
  const Vec16 last = LoadPartial(x + whole, width - whole);
  squares = Fma(last, last, squares);
  const float sum = Sum(squares);
  if (!(sum < __builtin_inff())) return __builtin_nanf("");
  return 1 / __builtin_sqrtf(sum / static_cast<float>(width) + epsilon);
}

}  // namespace
}  // namespace terrace
