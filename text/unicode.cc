#include "text/unicode.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "text/unicode_tables.h"

namespace terrace {
namespace {

template <size_t n>
bool Contains(const CodePointRange (&ranges)[n], char32_t code_point) {
  const auto* range = std::lower_bound(std::begin(ranges), std::end(ranges), code_point,
                                       [](const CodePointRange& r, char32_t c) { return r.last < c; });
  return range != std::end(ranges) && range->first <= code_point;
}

uint8_t Byte(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

}  // namespace

Utf8Step DecodeUtf8(std::string_view text) {
  const uint8_t lead = Byte(text, 0);
  if (lead < 0x80) return {.code_point = lead, .length = 1, .valid = true};
  if (lead < 0xC2 || lead > 0xF4) return {};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte rules out overlong forms, surrogates and values past U+10FFFF.
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t code_point = lead & (0x7F >> length);
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {.length = i, .truncated = true};
    const uint8_t byte = Byte(text, i);
    if (byte < (i == 1 ? low : 0x80) || byte > (i == 1 ? high : 0xBF)) return {.length = i};
    code_point = code_point << 6 | (byte & 0x3F);
  }
  return {.code_point = code_point, .length = length, .valid = true};
}

size_t LastCharacterLength(std::string_view text) {
  size_t length = 1;
  while (length < std::min<size_t>(4, text.size()) && (Byte(text, text.size() - length) & 0xC0) == 0x80)
    ++length;
  const Utf8Step step = DecodeUtf8(text.substr(text.size() - length));
  return step.valid && step.length == length ? length : 1;
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = DecodeUtf8(text);
    if (!step.valid) return false;
    text.remove_prefix(step.length);
  }
  return true;
}

void AppendUtf8(char32_t code_point, std::string& out) {
  const auto byte = [&](char32_t value) { out.push_back(static_cast<char>(value)); };
  if (code_point < 0x80) {
    byte(code_point);
  } else if (code_point < 0x800) {
    byte(0xC0 | code_point >> 6);
    byte(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    byte(0xE0 | code_point >> 12);
    byte(0x80 | (code_point >> 6 & 0x3F));
    byte(0x80 | (code_point & 0x3F));
  } else {
    byte(0xF0 | code_point >> 18);
    byte(0x80 | (code_point >> 12 & 0x3F));
    byte(0x80 | (code_point >> 6 & 0x3F));
    byte(0x80 | (code_point & 0x3F));
  }
}

bool IsLetter(char32_t c) {
  if (c < 0x80) return (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
  return Contains(kLetters, c);
}

bool IsNumber(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  return Contains(kNumbers, c);
}

bool IsWhiteSpace(char32_t c) {
  if (c <= 0x20) return c == ' ' || (c >= '\t' && c <= '\r');
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

}  // namespace terrace
