// tanh of sixteen lanes, the same few operations on every instruction set. Included once per instruction set,
// after vec16_*.h.
#pragma once

#include "kernels/simd/exp.h"

namespace terrace {
namespace {

// Absolute error below 3e-7 everywhere, which of small results is much: 2.5e-7 of exp(2x), whose weight in
// 2 / (exp(2x) + 1) is at most 1/2, and roundings of a sum, a quotient of up to 2 and a difference of up
// to 1. 1 and -1 for what is far from 0, the infinities too; NaN gives NaN.
inline Vec16 Tanh(Vec16 x) { return Sub(Splat(1), Div(Splat(2), Add(Exp(Add(x, x)), Splat(1)))); }

}  // namespace
}  // namespace terrace
