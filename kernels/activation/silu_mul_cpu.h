// Included once per instruction set, after simd/vec16_*.h.
#pragma once

#include "kernels/simd/exp.h"

namespace terrace {
namespace {

// gate / (1 + exp(-gate)) * up, relative error below 5e-7 (Exp, and four roundings), 0 below -88; NaN where
// gate is not finite (Shazeer, "GLU Variants Improve Transformer", 2020)
inline Vec16 SiluMul(Vec16 gate, Vec16 up) {
  const Vec16 silu = Div(gate, Add(Splat(1), Exp(Sub(Zero(), gate))));
  // Below -88 it is less than 1e-36, but Exp stands still. The difference is 0, or NaN of an infinity.
  return Mul(Add(ZeroBelow(gate, -88, silu), Sub(gate, gate)), up);
}

}  // namespace
}  // namespace terrace
