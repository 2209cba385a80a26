// The merge step of byte-pair encoding: repeatedly joins the adjacent pair of lowest rank (of equal ones the
// leftmost) until no pair has a merge. O(n log n) in the number of symbols. Immutable once filled; any thread
// may call Apply.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "text/tokenizer.h"

namespace terrace {

class BpeMerger {
 public:
  // A merge; ranks do not fall from one to the next. False when the pair has one already.
  bool Add(TokenId left, TokenId right, TokenId merged, uint32_t rank);

  // `symbols` with all merges done, appended to `out`. At most 2^31 - 1 symbols.
  void Apply(const std::vector<TokenId>& symbols, std::vector<TokenId>& out) const;

  const std::vector<std::pair<TokenId, TokenId>>& pairs() const { return pairs_; }  // by rank

 private:
  struct Merge {
    uint32_t rank;
    TokenId merged;
  };
  static constexpr size_t kFewSymbols = 32;  // of nearly every word
  void ApplyToFew(const std::vector<TokenId>& symbols, std::vector<TokenId>& out) const;
  const Merge* Find(TokenId left, TokenId right) const;

  absl::flat_hash_map<uint64_t, Merge> merges_;
  std::vector<std::pair<TokenId, TokenId>> pairs_;
};

}  // namespace terrace
