// The tokens of stretches of text that were encoded before: a conversation's next turn begins with all of its
// turns so far, and many prompts begin with the same instructions. A tokenizer cuts text where the tokens of
// neither part depend on the other (FindCut in pre_tokenizer.h), so whatever stands around a stretch, its
// tokens are these. What is found is compared byte by byte: never the tokens of another text with the same
// hash.
//
// Bounded in bytes; what was not used for longest goes first. Shared by all tokenizers of a router.
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "text/tokenizer.h"

namespace terrace {

class TokenCache {
 public:
  // Who finds what: the texts of one tokenizer, and of one scope. A scope is a tenant's (its cache salt), so
  // that the time a prompt takes tells nobody what others have sent.
  struct Space {
    uint64_t tokenizer = 0;
    Hash128 scope = {};
    friend bool operator==(const Space&, const Space&) = default;
  };
  // Bytes of text that were looked up.
  struct Counts {
    uint64_t hit = 0, missed = 0;
  };

  explicit TokenCache(size_t max_bytes);
  ~TokenCache();

  // Appends the tokens of `text` to `out`, if they are known.
  bool Append(const Space& space, std::string_view text, std::vector<TokenId>& out);
  void Put(const Space& space, std::string_view text, std::span<const TokenId> tokens);

  size_t bytes() const;   // that it takes: at most max_bytes
  Counts counts() const;  // since it was made

 private:
  class Shard;
  Shard& ShardOf(const Hash128& key) const;

  std::vector<std::unique_ptr<Shard>> shards_;
};

// The cache as one request uses it.
struct TokenCacheScope {
  TokenCache& cache;
  Hash128 scope = {};
};

}  // namespace terrace
