// Tokens [begin, end). Included once per instruction set, after simd/vec16_*.h.
#pragma once

#include "kernels/embed/embed.h"
#include "kernels/simd/unpack_row.h"

namespace terrace {
namespace {

inline void EmbedTokens(const EmbedArgs& a, size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i) {
    float* out = a.out + i * a.table.columns;
    UnpackRow(a.table, static_cast<size_t>(a.tokens[i]), out);
    if (a.scale == 1) continue;
    for (size_t k = 0; k < a.table.columns; ++k) out[k] *= a.scale;
  }
}

}  // namespace
}  // namespace terrace
