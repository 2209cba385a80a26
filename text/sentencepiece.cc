#include "text/sentencepiece.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "text/unicode.h"

namespace terrace {
namespace {

// Real pieces are of 16 characters or little more. Of longer ones there may be a few; each is looked at in
// all ways to part it.
constexpr size_t kMaxPieceBytes = 512, kMaxParts = size_t{1} << 24, kMaxMerges = size_t{1} << 22;

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// All characters of one byte, as texts.
constexpr std::array<char, 128> kAscii = [] {
  std::array<char, 128> characters = {};
  for (size_t i = 0; i < characters.size(); ++i) characters[i] = static_cast<char>(i);
  return characters;
}();

bool WantsMarkInFront(SpacePrefix prefix, std::string_view text, bool is_first) {
  const bool has_one = text.starts_with(' ') || text.starts_with(kSpaceMark);
  switch (prefix) {
    case SpacePrefix::kNone:
      return false;
    case SpacePrefix::kFirst:
      return is_first && !has_one;
    case SpacePrefix::kMissing:
      return !has_one;
    case SpacePrefix::kAlways:
      return true;
  }
  return false;
}

struct Part {  // a merge: token `merged` is `left` and `right`
  uint32_t merged;
  size_t left_length, right_length;  // in characters
  std::string_view left, right;
};

using TokenIndex = absl::flat_hash_map<std::string_view, uint32_t>;

// What may be merged, by name.
TokenIndex IndexPieces(const BpeData& data) {
  std::vector<bool> is_control(data.tokens.size());
  for (const auto& added : data.added) {
    if (added.is_control && added.id >= 0 && static_cast<size_t>(added.id) < data.tokens.size())
      is_control[static_cast<size_t>(added.id)] = true;
  }
  TokenIndex index;
  for (uint32_t id = 0; id < data.tokens.size(); ++id) {
    if (!is_control[id] && !ByteOfToken(data.tokens[id])) index.try_emplace(data.tokens[id], id);
  }
  for (uint32_t id = 0; id < data.tokens.size(); ++id) {  // after those: what has a token of its own keeps it
    const auto byte = ByteOfToken(data.tokens[id]);
    if (!is_control[id] && byte && *byte < kAscii.size() && data.tokens[id] == ByteToken(*byte))
      index.try_emplace(NameInMerges(data.tokens[id]), id);
  }
  return index;
}

}  // namespace

std::string MarkSpaces(const PreTokenizer& kind, std::string_view text, bool is_first) {
  std::string out;
  out.reserve(text.size() + text.size() / 2);  // a space in every four bytes or fewer
  if (WantsMarkInFront(kind.prefix, text, is_first)) out += kSpaceMark;
  for (;;) {
    const size_t space = std::min(text.find(' '), text.size());
    out += text.substr(0, space);
    if (space == text.size()) return out;
    out += kSpaceMark;
    text.remove_prefix(space + 1);
  }
}

std::string UnmarkSpaces(std::string_view token) {
  std::string out;
  for (;;) {
    const size_t mark = std::min(token.find(kSpaceMark), token.size());
    out += token.substr(0, mark);
    if (mark == token.size()) return out;
    out += ' ';
    token.remove_prefix(mark + kSpaceMark.size());
  }
}

size_t FirstWordLength(std::string_view text, bool at_each_mark) {
  size_t from = 0;
  while (text.substr(from).starts_with(kSpaceMark)) {
    from += kSpaceMark.size();
    if (at_each_mark) break;
  }
  return std::min(text.find(kSpaceMark, from), text.size());
}

size_t FindWord(std::string_view text, size_t from) {
  size_t mark = text.find(kSpaceMark, from + 1);
  while (mark != std::string_view::npos && text.substr(0, mark).ends_with(kSpaceMark))
    mark = text.find(kSpaceMark, mark + kSpaceMark.size());
  return std::min(mark, text.size());
}

std::string ByteToken(uint8_t byte) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  return {'<', '0', 'x', kDigits[byte >> 4], kDigits[byte & 15], '>'};
}

std::optional<uint8_t> ByteOfToken(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const int high = HexDigit(token[3]), low = HexDigit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<uint8_t>(high * 16 + low);
}

std::string_view NameInMerges(std::string_view token) {
  const auto byte = ByteOfToken(token);
  if (!byte || *byte >= kAscii.size()) return token;
  return {&kAscii[*byte], 1};
}

Status SetMergesOfScores(std::span<const float> scores, const std::string& key, BpeData& data) {
  const auto error = [&](std::string_view reason, size_t id, const auto&... text) {
    return WithReason(DataLoss(key, "[", id, "]: ", text...), reason);
  };
  const TokenIndex index = IndexPieces(data);
  std::vector<Part> parts;
  size_t looked_at = 0;
  for (const auto& [name, id] : index) {
    if (ByteOfToken(data.tokens[id])) continue;
    const std::string_view token = data.tokens[id];
    std::vector<size_t> begins;  // of its characters
    for (size_t at = 0; at < token.size(); at += DecodeUtf8(token.substr(at)).length) begins.push_back(at);
    if (begins.size() < 2) continue;
    looked_at += begins.size();
    if (token.size() > kMaxPieceBytes || looked_at > kMaxParts)
      return error("vocab_size", id, token.size(), " bytes; pieces may have ", kMaxPieceBytes,
                   ", and all of ", "them ", kMaxParts, " characters");
    if (std::isnan(scores[id])) return error("bad_merge", id, "its score is not a number");
    begins.push_back(token.size());
    for (size_t i = 0; i + 1 < begins.size(); ++i) {
      const std::string_view character = token.substr(begins[i], begins[i + 1] - begins[i]);
      if (!index.contains(character))
        return error("vocab_size", id, "its character \"", character, "\" is no token");
      const std::string_view left = token.substr(0, begins[i]), right = token.substr(begins[i]);
      if (i > 0 && index.contains(left) && index.contains(right))
        parts.push_back({id, i, begins.size() - 1 - i, left, right});
    }
    if (parts.size() > kMaxMerges) return error("bad_merge", id, "over ", kMaxMerges, " merges");
  }
  // Of one score as transformers' converter has them: that only counts where ties are not looked at.
  std::ranges::sort(parts, {}, [&](const Part& part) {
    return std::tuple(-scores[part.merged], -static_cast<int64_t>(part.left_length),
                      -static_cast<int64_t>(part.right_length), part.merged);
  });
  data.merges.clear();
  data.ties.clear();
  for (size_t i = 0; i < parts.size(); ++i) {
    data.merges.emplace_back(parts[i].left, parts[i].right);
    const bool is_tied = i > 0 && scores[parts[i].merged] == scores[parts[i - 1].merged];
    if (is_tied) {
      ++data.ties.back();
    } else {
      data.ties.push_back(1);
    }
  }
  return Status();
}

}  // namespace terrace
