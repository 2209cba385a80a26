// Drafts what followed the same tokens before, in the prompt or in the answer (prompt lookup, Saxena 2023):
// no model, but right where an answer repeats, quotes or edits what is there.
//
// Of the places where the last `min_match` tokens came before, the `candidates` newest ones are looked at;
// the one that agrees with the end of the sequence over most tokens is the one to go on like, of equal ones
// the newest. A branch goes on like the best of those places that go on otherwise. A draft that reaches the
// end of the sequence goes on in itself: what comes in circles is drafted to any length.
//
// An index of each sequence grows with it: O(1) for a token. It takes about 40 bytes a token, and all
// together hold `max_tokens` tokens: the sequences that were not asked for the longest give way.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "worker/speculative/drafter.h"

namespace terrace {

class NgramDrafter : public Drafter {
 public:
  struct Options {
    uint32_t min_match = 3;   // tokens, at least 1
    uint32_t max_match = 32;  // further back nothing is compared
    uint32_t candidates = 16;
    uint64_t max_tokens = uint64_t{1} << 20;
  };

  explicit NgramDrafter(const Options& options) : options_(options) {}

  std::string_view name() const override { return "ngram"; }
  bool is_cheap() const override { return true; }
  std::optional<uint32_t> MissingTokens(const DraftRequest&) const override { return 0; }
  uint32_t max_pass_tokens() const override { return 1; }
  StatusOr<Drafts> Propose(std::span<const DraftRequest> requests) override;
  void Forget(uint64_t id) override;

  uint64_t indexed_tokens() const { return indexed_tokens_; }

 private:
  // Places are called by their end: the position behind the min_match tokens.
  struct Index {
    absl::flat_hash_map<uint64_t, uint32_t> newest;  // the last place with tokens of this hash
    std::vector<uint32_t>
        previous;  // by place: the one before with the same hash; 0: none. As long as indexed
    uint64_t last_call = 0;
  };

  uint64_t HashBefore(std::span<const int32_t> tokens, size_t end) const;
  bool MakeRoom(uint64_t tokens);
  bool Extend(Index& index, std::span<const int32_t> tokens);
  size_t FindPlace(const Index& index, std::span<const int32_t> tokens, std::optional<int32_t> without) const;
  size_t CommonBefore(std::span<const int32_t> tokens, size_t place) const;

  const Options options_;
  std::unordered_map<uint64_t, Index> indexes_;  // by sequence
  uint64_t indexed_tokens_ = 0;                  // the sum of `previous` sizes
  uint64_t calls_ = 0;
};

}  // namespace terrace
