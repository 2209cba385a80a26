// Tokens [begin, end). Included once per instruction set, after simd/vec16_*.h.
#pragma once

#include "kernels/norm/rms_norm.h"

namespace terrace {
namespace {

inline void RmsNormTokens(const RmsNormArgs& a, size_t begin, size_t end) {
  for (size_t token = begin; token < end; ++token) {
    const float* x = a.x + token * a.width;
    float* out = a.out + token * a.width;
    const size_t whole = a.width / 16 * 16, rest = a.width - whole;
    Vec16 squares = Zero();
    for (size_t i = 0; i < whole; i += 16) squares = Fma(Load(x + i), Load(x + i), squares);
    const Vec16 last = LoadPartial(x + whole, rest);
    squares = Fma(last, last, squares);
    const float mean = Sum(squares) / static_cast<float>(a.width);
    const Vec16 scale = Splat(1 / __builtin_sqrtf(mean + a.epsilon));
    for (size_t i = 0; i < whole; i += 16) Store(out + i, Mul(Mul(Load(x + i), scale), Load(a.weight + i)));
    StorePartial(out + whole, rest, Mul(Mul(last, scale), LoadPartial(a.weight + whole, rest)));
  }
}

}  // namespace
}  // namespace terrace
