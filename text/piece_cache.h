// What pieces of text were encoded to by this thread of late: text repeats its words, and merging one again
// costs ten times as much as finding it here. One a thread, for all of its tokenizers; 290 KiB, taken by the
// first use. Direct-mapped: a piece that falls on another's place takes it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "text/tokenizer.h"

namespace terrace {

class PieceCache {
 public:
  static PieceCache& OfThisThread() {
    thread_local const auto cache = std::make_unique<PieceCache>();
    return *cache;
  }

  // Appends the tokens of `piece` to `out`, if they are known. `owner` is never 0, and never used by two
  // tokenizers.
  bool Append(uint64_t owner, std::string_view piece, std::vector<TokenId>& out) const {
    if (piece.size() > kMaxBytes) return false;
    const Entry& entry = entries_[PlaceOf(owner, piece)];
    const bool is_it = entry.owner == owner && entry.bytes == piece.size() &&
                       std::memcmp(entry.piece.data(), piece.data(), piece.size()) == 0;
    if (is_it) out.insert(out.end(), entry.tokens.begin(), entry.tokens.begin() + entry.count);
    return is_it;
  }
  void Put(uint64_t owner, std::string_view piece, std::span<const TokenId> tokens) {
    if (piece.size() > kMaxBytes || tokens.size() > kMaxTokens) return;
    Entry& entry = entries_[PlaceOf(owner, piece)];
    entry.owner = owner;
    entry.bytes = static_cast<uint8_t>(piece.size());
    entry.count = static_cast<uint8_t>(tokens.size());
    std::ranges::copy(piece, entry.piece.begin());
    std::ranges::copy(tokens, entry.tokens.begin());
  }

 private:
  static constexpr size_t kEntries = 4096, kMaxBytes = 30, kMaxTokens = 8;
  struct Entry {
    uint64_t owner = 0;
    uint8_t bytes = 0, count = 0;
    std::array<char, kMaxBytes> piece = {};
    std::array<TokenId, kMaxTokens> tokens = {};
  };
  static size_t PlaceOf(uint64_t owner, std::string_view piece) {
    return HashBytes(piece, owner).low % kEntries;
  }
  std::array<Entry, kEntries> entries_;
};

}  // namespace terrace
