// Names of KV blocks and where a sequence's positions lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace terrace {

using BlockId = int32_t;
// Block i of a sequence holds its positions [i * block_tokens, (i + 1) * block_tokens).
using BlockTable = std::vector<BlockId>;

// Blocks that `tokens` positions need.
constexpr size_t BlocksFor(size_t tokens, size_t block_tokens) {
  return (tokens + block_tokens - 1) / block_tokens;
}

}  // namespace terrace
