// What pieces of text were encoded to by this thread of late: text repeats its words, and merging one again
// costs ten times as much as finding it here. One a thread, for all of its tokenizers; 256 KiB, taken by the
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
    if (!is_it) return false;
    for (size_t i = 0; i < entry.count; ++i) out.push_back(entry.tokens[i]);  // mostly one or two
    return true;
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
  static constexpr int kIndexBits = 12;
  static constexpr size_t kEntries = size_t{1} << kIndexBits, kMaxBytes = 26, kMaxTokens = 7;
  struct alignas(64) Entry {  // a cache line
    uint64_t owner = 0;
    uint8_t bytes = 0, count = 0;
    std::array<char, kMaxBytes> piece = {};
    std::array<TokenId, kMaxTokens> tokens = {};
  };
  static_assert(sizeof(Entry) == 64);
  // A mix of length, first and last bytes, which are all there are of most pieces: what meets another there
  // takes its place, and no more. `piece` is not empty.
  static size_t PlaceOf(uint64_t owner, std::string_view piece) {
    const size_t size = piece.size();
    uint64_t first = 0, last = 0;
    if (size >= sizeof(uint64_t)) {
      std::memcpy(&first, piece.data(), sizeof(uint64_t));
      std::memcpy(&last, piece.data() + size - sizeof(uint64_t), sizeof(uint64_t));
    } else if (size >= sizeof(uint32_t)) {
      std::memcpy(&first, piece.data(), sizeof(uint32_t));
      std::memcpy(&last, piece.data() + size - sizeof(uint32_t), sizeof(uint32_t));
    } else {
      const auto byte = [&](size_t i) { return uint64_t{static_cast<uint8_t>(piece[i])}; };
      first = byte(0) | byte(size / 2) << 8 | byte(size - 1) << 16;
    }
    uint64_t mix = (first + owner) * 0x9E3779B97F4A7C15;
    mix = ((mix ^ mix >> 32) + last + size) * 0xD6E8FEB86659FD93;
    return mix >> (64 - kIndexBits);
  }
  std::array<Entry, kEntries> entries_;
};

}  // namespace terrace
