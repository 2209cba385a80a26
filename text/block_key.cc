#include "text/block_key.h"

#include <array>
#include <bit>
#include <cstring>
#include <string_view>

#include "base/status.h"

namespace terrace {
namespace {

static_assert(std::endian::native == std::endian::little, "keys are hashes of little-endian bytes");

}  // namespace

// What a Hasher makes of the same parts, whose state costs several times as much as this.
Hash128 RootBlockKey(const BlockKeyScope& scope) {
  std::string bytes;
  for (const std::string* part : {&scope.model, &scope.layout, &scope.salt, &scope.adapter}) {
    const uint64_t size = part->size();
    bytes.append(reinterpret_cast<const char*>(&size), sizeof(size));
    bytes.append(*part);
  }
  return HashBytes(bytes, scope.secret);
}

Hash128 BlockKey(const Hash128& parent, std::span<const int32_t> tokens) {
  CHECK(!tokens.empty() && tokens.size() <= kMaxBlockTokens, tokens.size(), " tokens in a block");
  std::array<char, 2 * sizeof(uint64_t) + size_t{kMaxBlockTokens} * sizeof(int32_t)> bytes;
  std::memcpy(bytes.data(), &parent.high, sizeof(uint64_t));
  std::memcpy(bytes.data() + sizeof(uint64_t), &parent.low, sizeof(uint64_t));
  std::memcpy(bytes.data() + 2 * sizeof(uint64_t), tokens.data(), tokens.size_bytes());
  return HashBytes(std::string_view(bytes.data(), 2 * sizeof(uint64_t) + tokens.size_bytes()));
}

void ExtendBlockKeys(const Hash128& root, std::span<const int32_t> tokens, uint32_t block_tokens,
                     std::vector<Hash128>& keys) {
  while ((keys.size() + 1) * block_tokens <= tokens.size()) {
    const Hash128& parent = keys.empty() ? root : keys.back();
    keys.push_back(BlockKey(parent, tokens.subspan(keys.size() * block_tokens, block_tokens)));
  }
}

}  // namespace terrace
