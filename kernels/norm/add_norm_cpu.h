// Tokens [begin, end). Included once per instruction set, after simd/vec16_*.h.
#pragma once

#include "kernels/norm/add_norm.h"
#include "kernels/norm/rms_norm_cpu.h"

namespace terrace {
namespace {

inline void AddNormTokens(const AddNormArgs& a, size_t begin, size_t end) {
  const size_t whole = a.width / 16 * 16, rest = a.width - whole;
  for (size_t token = begin; token < end; ++token) {
    const float* x = a.x + token * a.width;
    float* hidden = a.hidden + token * a.width;
    const Vec16 scale = Splat(RmsNormScale(x, a.width, a.norm_epsilon));
    const auto sum = [scale](Vec16 stream, Vec16 out, Vec16 norm) {
      return Add(stream, Mul(Mul(out, scale), norm));
    };
    for (size_t i = 0; i < whole; i += 16) {
      Store(hidden + i, sum(Load(hidden + i), Load(x + i), Load(a.norm + i)));
    }
    StorePartial(hidden + whole, rest,
                 sum(LoadPartial(hidden + whole, rest), LoadPartial(x + whole, rest),
                     LoadPartial(a.norm + whole, rest)));
  }
}

}  // namespace
}  // namespace terrace
