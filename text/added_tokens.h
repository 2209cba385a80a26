// Finds added tokens (control tokens and others that text is cut at before BPE) in text: leftmost, then
// longest. Immutable; any thread may call it.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace terrace {

class AddedTokenFinder {
 public:
  AddedTokenFinder() = default;
  // The contents, not empty and all different, are borrowed: `added` outlives this object.
  explicit AddedTokenFinder(const std::vector<BpeData::AddedToken>& added);

  struct Match {
    size_t begin = 0, end = 0;
    TokenId id = 0;
  };
  // The first match in text[begin, size). A control token matches only where one range of `control` (sorted,
  // no two adjacent) holds all of it.
  std::optional<Match> Find(std::string_view text, size_t begin, std::span<const ByteRange> control) const;

 private:
  struct Entry {
    std::string_view content;
    TokenId id;
    bool is_control;
  };
  size_t NextCandidate(std::string_view text, size_t from) const;  // text.size(): none
  std::optional<Match> MatchAt(std::string_view text, size_t begin, size_t control_end) const;

  std::vector<Entry> entries_;  // sorted by content
  std::array<bool, 256> is_first_byte_{};
  std::optional<char> first_byte_;  // of all contents, where they have the same
};

}  // namespace terrace
