#include "text/added_tokens.h"

#include <algorithm>

namespace terrace {

AddedTokenFinder::AddedTokenFinder(const std::vector<BpeData::AddedToken>& added) {
  for (const auto& token : added) {
    entries_.push_back({token.content, token.id, token.is_control});
    is_first_byte_[static_cast<uint8_t>(token.content[0])] = true;
  }
  if (std::ranges::count(is_first_byte_, true) == 1) first_byte_ = added.front().content[0];
  std::ranges::sort(entries_, {}, &Entry::content);
}

std::optional<AddedTokenFinder::Match> AddedTokenFinder::Find(std::string_view text, size_t begin,
                                                              std::span<const ByteRange> control) const {
  for (size_t i = NextCandidate(text, begin); i < text.size(); i = NextCandidate(text, i + 1)) {
    const auto range = std::ranges::upper_bound(control, i, {}, &ByteRange::end);
    const bool inside = range != control.end() && range->begin <= i;
    if (auto match = MatchAt(text, i, inside ? range->end : i)) return match;
  }
  return std::nullopt;
}

size_t AddedTokenFinder::NextCandidate(std::string_view text, size_t from) const {
  if (entries_.empty()) return text.size();
  if (first_byte_.has_value()) return std::min(text.find(*first_byte_, from), text.size());
  while (from < text.size() && !is_first_byte_[static_cast<uint8_t>(text[from])]) ++from;
  return std::min(from, text.size());
}

// The longest token at `begin`; control tokens end by `control_end`. [first, last) narrows, byte by byte, to
// the entries that begin with text[begin, begin + length).
std::optional<AddedTokenFinder::Match> AddedTokenFinder::MatchAt(std::string_view text, size_t begin,
                                                                 size_t control_end) const {
  std::optional<Match> longest;
  auto first = entries_.begin(), last = entries_.end();
  for (size_t length = 1; begin + length <= text.size(); ++length) {
    const auto byte_of = [&](const Entry& entry) {  // -1 for entries too short: they sort first
      return entry.content.size() < length ? -1 : static_cast<uint8_t>(entry.content[length - 1]);
    };
    const int byte = static_cast<uint8_t>(text[begin + length - 1]);
    const auto same = std::ranges::equal_range(first, last, byte, {}, byte_of);
    first = same.begin();
    last = same.end();
    if (first == last) break;
    const bool is_whole = first->content.size() == length;
    if (is_whole && (!first->is_control || begin + length <= control_end)) {
      longest = Match{begin, begin + length, first->id};
    }
  }
  return longest;
}

}  // namespace terrace
