// Elements [begin, end). Included once per instruction set, after simd/vec16_*.h.
#pragma once

#include "kernels/activation/silu_mul.h"
#include "kernels/simd/exp.h"

namespace terrace {
namespace {

inline Vec16 SiluMul(Vec16 gate, Vec16 up) {
  return Mul(Div(gate, Add(Splat(1), Exp(Sub(Zero(), gate)))), up);
}

inline void SiluMulElements(const SiluMulArgs& a, size_t begin, size_t end) {
  size_t i = begin;
  for (; i + 16 <= end; i += 16) Store(a.out + i, SiluMul(Load(a.gate + i), Load(a.up + i)));
  const size_t rest = end - i;
  StorePartial(a.out + i, rest, SiluMul(LoadPartial(a.gate + i, rest), LoadPartial(a.up + i, rest)));
}

}  // namespace
}  // namespace terrace
