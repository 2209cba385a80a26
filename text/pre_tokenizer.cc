#include "text/pre_tokenizer.h"

#include <algorithm>
#include <array>

#include "text/unicode.h"

namespace terrace {
namespace {

constexpr PreTokenizer kKinds[] = {
    {.name = "gpt2"},
    {.name = "smollm", .splits_digits_first = true},
    {.name = "llama-bpe", .is_llama_style = true, .number_length = 3, .ignores_merges = true},
    {.name = "dbrx", .is_llama_style = true, .number_length = 3},
    {.name = "qwen2", .is_llama_style = true, .number_length = 1},
    {.name = "spm", .marks_spaces = true, .prefix = SpacePrefix::kAlways},
    {.name = "spm-always", .marks_spaces = true, .prefix = SpacePrefix::kMissing},
    {.name = "spm-first", .marks_spaces = true, .prefix = SpacePrefix::kFirst},
    {.name = "spm-none", .marks_spaces = true},
    {.name = "spm-always-words", .marks_spaces = true, .prefix = SpacePrefix::kMissing, .splits_words = true},
    {.name = "spm-first-words", .marks_spaces = true, .prefix = SpacePrefix::kFirst, .splits_words = true},
    {.name = "spm-none-words", .marks_spaces = true, .splits_words = true},
};

constexpr std::pair<std::string_view, std::string_view> kAliases[] = {
    {"gpt-2", "gpt2"}, {"llama3", "llama-bpe"}, {"llama-v3", "llama-bpe"}};

enum class Class : uint8_t { kLetter, kNumber, kSpace, kOther };

Class ClassOf(char32_t c) {
  if (IsLetter(c)) return Class::kLetter;
  if (IsNumber(c)) return Class::kNumber;
  return IsWhiteSpace(c) ? Class::kSpace : Class::kOther;
}

const std::array<Class, 128> kAsciiClasses = [] {
  std::array<Class, 128> classes;
  for (char32_t c = 0; c < classes.size(); ++c) classes[c] = ClassOf(c);
  return classes;
}();

struct Character {
  Class type;
  size_t length;
};

[[gnu::noinline]] Character WideCharacterAt(std::string_view text, size_t i) {
  const Utf8Step step = DecodeUtf8(text.substr(i));
  return {step.valid ? ClassOf(step.code_point) : Class::kOther, step.length};
}

// Inlined, as most text is ASCII.
[[gnu::always_inline]] inline Character CharacterAt(std::string_view text, size_t i) {
  const uint8_t byte = static_cast<uint8_t>(text[i]);
  if (byte < 0x80) return {kAsciiClasses[byte], 1};
  return WideCharacterAt(text, i);
}

bool IsLineBreak(char c) { return c == '\r' || c == '\n'; }

// The end of the run of at most `limit` characters of `type` that begins at `i`.
size_t RunEnd(std::string_view text, size_t i, Class type, size_t limit = SIZE_MAX) {
  for (; i < text.size() && limit > 0; --limit) {
    const Character next = CharacterAt(text, i);
    if (next.type != type) break;
    i += next.length;
  }
  return i;
}

// The length of the contraction ('s, 't, 're, 've, 'm, 'll, 'd) that `text` begins with, or 0.
// Case-insensitive matching is Unicode's, in which U+017F is an s.
size_t ContractionLength(std::string_view text, bool ignore_case) {
  if (text.size() < 2 || text[0] != '\'') return 0;
  const auto lower = [&](char c) {
    return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char first = lower(text[1]);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if (ignore_case && text.substr(1, 2) == "\xC5\xBF") return 3;
  if (text.size() < 3) return 0;
  const char second = lower(text[2]);
  const bool pair = (first == 'l' && second == 'l') || ((first == 'r' || first == 'v') && second == 'e');
  return pair ? 3 : 0;
}

// White space at the front of `text`: \s*[\r\n]+ (llama style), then \s+(?!\S), then \s+.
size_t SpaceLength(std::string_view text, bool is_llama_style) {
  size_t end = 0, last = 0,
         after_line_break = 0;  // of the run; of its last character; of its last line break
  while (end < text.size()) {
    const Character next = CharacterAt(text, end);
    if (next.type != Class::kSpace) break;
    last = end;
    end += next.length;
    if (IsLineBreak(text[last])) after_line_break = end;
  }
  if (is_llama_style && after_line_break > 0) return after_line_break;
  // A run before other text leaves its last character to that text, unless it is the only one.
  return end == text.size() || last == 0 ? end : last;
}

}  // namespace

std::optional<PreTokenizer> FindPreTokenizer(std::string_view name) {
  for (const auto& [alias, canonical] : kAliases) {
    if (name == alias) name = canonical;
  }
  const auto* kind = std::ranges::find(kKinds, name, &PreTokenizer::name);
  if (kind == std::end(kKinds)) return std::nullopt;
  return *kind;
}

size_t FirstPieceLength(const PreTokenizer& kind, std::string_view text) {
  if (const size_t length = ContractionLength(text, kind.is_llama_style)) return length;
  const Character first = CharacterAt(text, 0);
  // One character may stand in front of a word: a space, in llama style anything but a line break or a
  // number.
  const bool takes_word = kind.is_llama_style ? !IsLineBreak(text[0]) && first.type != Class::kNumber &&
                                                    first.type != Class::kLetter
                                              : text[0] == ' ';
  const bool has_next = first.length < text.size();
  const Class next = has_next ? CharacterAt(text, first.length).type : Class::kSpace;
  if (first.type == Class::kLetter) return RunEnd(text, 0, Class::kLetter);
  if (takes_word && has_next && next == Class::kLetter) return RunEnd(text, first.length, Class::kLetter);

  if (first.type == Class::kNumber) {
    return RunEnd(text, 0, Class::kNumber, kind.number_length == 0 ? SIZE_MAX : kind.number_length);
  }
  const bool spaced = text[0] == ' ' && has_next;
  if (spaced && next == Class::kNumber && !kind.is_llama_style) return RunEnd(text, 1, Class::kNumber);

  if (first.type == Class::kOther || (spaced && next == Class::kOther)) {
    size_t end = RunEnd(text, first.length, Class::kOther);
    while (kind.is_llama_style && end < text.size() && IsLineBreak(text[end])) ++end;
    return end;
  }
  return SpaceLength(text, kind.is_llama_style);
}

size_t LengthBeforeNumber(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const Character next = CharacterAt(text, i);
    if (next.type == Class::kNumber) break;
    i += next.length;
  }
  return i;
}

// In every kind, a piece that has a letter goes on with letters alone and ends with them; and to know where a
// piece ends that lies before the cut, no kind looks further than at the letters there.
size_t FindCut(std::string_view text, size_t from) {
  const auto is_inside = [&](size_t i) { return (static_cast<uint8_t>(text[i]) & 0xC0) == 0x80; };
  while (from < text.size() && is_inside(from)) ++from;  // to where a character begins
  for (bool is_behind_letter = false; from < text.size();) {
    const Character next = CharacterAt(text, from);
    if (is_behind_letter && next.type != Class::kLetter) return from;
    is_behind_letter = next.type == Class::kLetter;
    from += next.length;
  }
  return text.size();
}

size_t FirstCharacterLength(std::string_view text) { return CharacterAt(text, 0).length; }

}  // namespace terrace
