// Elements [begin, end). Included once per instruction set, after simd/vec16_*.h.
#pragma once

#include "kernels/sample/cap_logits.h"
#include "kernels/simd/tanh.h"

namespace terrace {
namespace {

inline void CapLogitsRange(const CapLogitsArgs& a, size_t begin, size_t end) {
  const Vec16 cap = Splat(a.cap);
  const auto capped = [cap](Vec16 logits) {
    const Vec16 nan_unless_finite = Sub(logits, logits);  // else 0
    return Add(Mul(cap, Tanh(Div(logits, cap))), nan_unless_finite);
  };
  size_t i = begin;
  for (; i + 16 <= end; i += 16) Store(a.logits + i, capped(Load(a.logits + i)));
  StorePartial(a.logits + i, end - i, capped(LoadPartial(a.logits + i, end - i)));
}

}  // namespace
}  // namespace terrace
