// Included once per instruction set, after simd/vec16_*.h.
#pragma once

#include "kernels/activation/gate_function.h"
#include "kernels/simd/exp.h"

namespace terrace {
namespace {

// z of the gate function x / (1 + exp(-z)).
inline Vec16 GateExponent(GateFunction function, Vec16 x) {
  if (function == GateFunction::kSilu) return x;
  constexpr float kLinear = 1.59576912f, kCubic = 0.0713548163f;  // 2 sqrt(2 / pi), and 0.044715 of it
  return Mul(x, Fma(Mul(x, x), Splat(kCubic), Splat(kLinear)));
}

// Gate function of x, times up. Relative error below 5e-7 (Exp, and four roundings), of GELU plus 3e-7 |z|
// (z's four roundings; five without an FMA instruction); 0 where z is below -88; NaN where x is not finite.
inline Vec16 GateMul(GateFunction function, Vec16 x, Vec16 up) {
  const Vec16 z = GateExponent(function, x);
  const Vec16 gate = Div(x, Add(Splat(1), Exp(Sub(Zero(), z))));
  // Below -88 it is less than 1e-36, but Exp stands still. The difference is 0, or NaN of an infinity.
  return Mul(Add(ZeroBelow(z, -88, gate), Sub(x, x)), up);
}

}  // namespace
}  // namespace terrace
