#include "text/nfc.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "text/nfc_tables.h"
#include "text/unicode.h"

namespace terrace {
namespace {

// Syllables of Hangul are composed by arithmetic: a leading consonant, a vowel, and perhaps one more behind.
constexpr char32_t kSyllables = 0xAC00, kLeading = 0x1100, kVowels = 0x1161, kTrailing = 0x11A7;
constexpr char32_t kLeadingCount = 19, kVowelCount = 21, kTrailingCount = 28;
constexpr char32_t kSyllableCount = kLeadingCount * kVowelCount * kTrailingCount;
constexpr char32_t kFirstMark = 0x300;  // all characters below stay as they are, whatever stands around them

bool IsSyllable(char32_t c) { return c >= kSyllables && c < kSyllables + kSyllableCount; }

struct Character {
  char32_t code_point;
  uint8_t combining_class;
};

uint8_t CombiningClass(char32_t c) {
  const auto* range = std::ranges::lower_bound(kCombiningClasses, c, {}, &CombiningClassRange::last);
  return range != std::end(kCombiningClasses) && range->first <= c ? range->combining_class : 0;
}

const Decomposition* FindDecomposition(char32_t c) {
  const auto* found = std::ranges::lower_bound(kDecompositions, c, {}, &Decomposition::code_point);
  return found != std::end(kDecompositions) && found->code_point == c ? found : nullptr;
}

uint64_t PairKey(char32_t first, char32_t second) { return uint64_t{first} << 32 | second; }

// What a pair of characters becomes one of; 0: nothing.
char32_t Compose(char32_t first, char32_t second) {
  static const auto* const composed = [] {
    auto* map = new absl::flat_hash_map<uint64_t, char32_t>;
    for (const Decomposition& each : kDecompositions) {
      if (each.is_composed) map->emplace(PairKey(each.first, each.second), each.code_point);
    }
    return map;
  }();
  if (first >= kLeading && first < kLeading + kLeadingCount && second >= kVowels &&
      second < kVowels + kVowelCount) {
    return kSyllables + ((first - kLeading) * kVowelCount + (second - kVowels)) * kTrailingCount;
  }
  if (IsSyllable(first) && (first - kSyllables) % kTrailingCount == 0 && second > kTrailing &&
      second < kTrailing + kTrailingCount) {
    return first + (second - kTrailing);
  }
  const auto found = composed->find(PairKey(first, second));
  return found == composed->end() ? 0 : found->second;
}

void Decompose(char32_t c, std::vector<Character>& out) {
  if (IsSyllable(c)) {
    const char32_t index = c - kSyllables, trailing = index % kTrailingCount;
    out.push_back({kLeading + index / (kVowelCount * kTrailingCount), 0});
    out.push_back({kVowels + index / kTrailingCount % kVowelCount, 0});
    if (trailing > 0) out.push_back({kTrailing + trailing, 0});
    return;
  }
  const Decomposition* parts = FindDecomposition(c);
  if (parts == nullptr) return out.push_back({c, CombiningClass(c)});
  Decompose(parts->first, out);  // a few levels at most
  if (parts->second != 0) Decompose(parts->second, out);
}

void SortMarks(std::span<Character> text) {
  for (auto begin = text.begin(); begin != text.end();) {
    const auto is_starter = [](const Character& c) { return c.combining_class == 0; };
    const auto end = std::find_if(begin, text.end(), is_starter);
    std::ranges::stable_sort(begin, end, {}, &Character::combining_class);
    begin = std::find_if_not(end, text.end(), is_starter);
  }
}

// Joins each character to the last starter before it, unless one of its class or none stands between.
void AppendComposed(std::span<const Character> text, std::string& out) {
  std::vector<Character> kept;
  size_t starter = SIZE_MAX;  // in `kept`
  for (const Character& next : text) {
    if (starter != SIZE_MAX) {
      const bool is_adjacent = starter + 1 == kept.size();
      const bool is_blocked = !is_adjacent && kept.back().combining_class >= next.combining_class;
      const char32_t joined = is_blocked ? 0 : Compose(kept[starter].code_point, next.code_point);
      if (joined != 0) {
        kept[starter].code_point = joined;
        continue;
      }
    }
    if (next.combining_class == 0) starter = kept.size();
    kept.push_back(next);
  }
  for (const Character& c : kept) AppendUtf8(c.code_point, out);
}

// By code point, below kBound: whether a character may change or be joined to one before it.
constexpr char32_t kBound = 0x30000;
std::vector<bool> MakeAffected() {
  std::vector<bool> affected(kBound);
  for (const CombiningClassRange& range : kCombiningClasses) {
    for (char32_t c = range.first; c <= range.last && c < kBound; ++c) affected[c] = true;
  }
  for (const Decomposition& each : kDecompositions)
    affected[each.is_composed ? each.second : each.code_point] = true;
  for (char32_t i = 0; i < kVowelCount; ++i) affected[kVowels + i] = true;
  for (char32_t i = 1; i < kTrailingCount; ++i) affected[kTrailing + i] = true;
  return affected;
}

}  // namespace

bool IsPlainlyNfc(std::string_view text) {
  static const auto* const affected = new std::vector<bool>(MakeAffected());
  constexpr uint8_t kFirstLead = 0xCC;  // of characters from kFirstMark on
  for (size_t i = 0; i < text.size();) {
    if (uint64_t next = 0; i + sizeof(next) <= text.size()) {  // eight bytes of ASCII at once
      std::memcpy(&next, text.data() + i, sizeof(next));
      if ((next & 0x8080808080808080) == 0) {
        i += sizeof(next);
        continue;
      }
    }
    if (static_cast<uint8_t>(text[i]) < kFirstLead) {
      ++i;
      continue;
    }
    const Utf8Step step = DecodeUtf8(text.substr(i));
    if (step.valid && step.code_point < kBound && (*affected)[step.code_point]) return false;
    i += step.length;
  }
  return true;
}

std::string ToNfc(std::string_view text) {
  std::string out;
  std::vector<Character> run;  // of characters; what is none ends it
  const auto flush = [&] {
    SortMarks(run);
    AppendComposed(run, out);
    run.clear();
  };
  while (!text.empty()) {
    const Utf8Step step = DecodeUtf8(text);
    if (step.valid) {
      Decompose(step.code_point, run);
    } else {
      flush();
      out += text.substr(0, step.length);
    }
    text.remove_prefix(step.length);
  }
  flush();
  return out;
}

}  // namespace terrace
