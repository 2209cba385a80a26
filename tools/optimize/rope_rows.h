// The order of the rows of query and key matrices, which follows from how RoPE pairs the elements of a head.
// Pure.
#pragma once

#include <cstdint>

#include "worker/formats/model_config.h"

namespace terrace {

// Which row of a matrix for the pairing `from` is row `row` of the same matrix for `to`.
inline uint64_t RopeRow(RopePairing from, RopePairing to, uint64_t row, uint64_t head_dim) {
  if (from == to) return row;
  const uint64_t head = row / head_dim * head_dim, i = row % head_dim, half = head_dim / 2;
  if (to == RopePairing::kNeighbours) return head + i / 2 + (i % 2 == 0 ? 0 : half);
  return head + (i < half ? 2 * i : 2 * (i - half) + 1);
}

}  // namespace terrace
