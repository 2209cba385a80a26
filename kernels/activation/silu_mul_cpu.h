// Included once per instruction set, after simd/vec16_*.h.
#pragma once

#include "kernels/simd/exp.h"

namespace terrace {
namespace {

// gate / (1 + exp(-gate)) * up (Shazeer, "GLU Variants Improve Transformer", 2020)
inline Vec16 SiluMul(Vec16 gate, Vec16 up) {
  return Mul(Div(gate, Add(Splat(1), Exp(Sub(Zero(), gate)))), up);
}

}  // namespace
}  // namespace terrace
