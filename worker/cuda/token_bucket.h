// The sizes of steps that are replayed as graphs. Pure.
#pragma once

#include <bit>
#include <cstdint>

namespace terrace {

// `tokens` (at least 1) rounded up, so that few graphs serve all batches: each of up to 8 tokens, and four of
// each doubling. Less than a quarter more beyond 8.
constexpr uint32_t TokenBucket(uint32_t tokens) {
  if (tokens <= 8) return tokens;
  const uint32_t step = std::bit_floor(tokens - 1) / 4;
  return (tokens + step - 1) / step * step;
}

}  // namespace terrace
