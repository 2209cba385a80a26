// Keys of KV blocks: what makes two blocks hold the same keys and values. Router and workers compute the same
// keys from the same tokens. Pure functions; any thread.
//
// key(block) = XXH3-128(key(block before), the block's tokens); the first block's predecessor is the root key
// of its scope. So a key names all tokens from the beginning on, and everything in the scope. Not a defence
// against a chosen collision: who reads a block by its key compares the tokens too.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/hash.h"

namespace terrace {

// Whatever else than tokens the bits of a block depend on, and who may share it.
struct BlockKeyScope {
  uint64_t secret = 0;      // of the cluster
  std::string model = {};   // digest of its files
  std::string layout = {};  // dtype and shape of the KV cache
  std::string salt = {};    // of the tenant: blocks are shared only within one
  std::string adapter = {};
  friend bool operator==(const BlockKeyScope&, const BlockKeyScope&) = default;
};

inline constexpr uint32_t kMaxBlockTokens = 1024;

// What routers know of a key: blocks of one worker that share it are mistaken for each other, and a request
// goes to a worker that has less in its cache.
inline uint64_t ShortKey(const Hash128& key) { return key.low; }

Hash128 RootBlockKey(const BlockKeyScope& scope);
// `tokens`: all of the block's, 1 to kMaxBlockTokens.
Hash128 BlockKey(const Hash128& parent, std::span<const int32_t> tokens);
// Appends to `keys` (those of the first blocks of `tokens`) the keys of the whole blocks that follow.
void ExtendBlockKeys(const Hash128& root, std::span<const int32_t> tokens, uint32_t block_tokens,
                     std::vector<Hash128>& keys);

}  // namespace terrace
