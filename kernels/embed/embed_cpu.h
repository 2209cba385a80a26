// Tokens [begin, end). Included once per instruction set, after simd/vec16_*.h.
#pragma once

#include "kernels/embed/embed.h"
#include "kernels/simd/unpack_row.h"

namespace terrace {
namespace {

inline void EmbedTokens(const EmbedArgs& a, size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i) {
    UnpackRow(a.table, static_cast<size_t>(a.tokens[i]), a.out + i * a.table.columns);
  }
}

}  // namespace
}  // namespace terrace
