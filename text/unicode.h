// UTF-8, and the few Unicode properties that pre-tokenizers and templates need. Pure functions, thread-safe.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace terrace {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Step {
  char32_t code_point = 0xFFFD;
  size_t length = 1;   // bytes, at least 1
  bool valid = false;  // when not: `length` bytes are one ill-formed sequence (Unicode 3.9: maximal subpart)
  bool truncated = false;  // not valid only because the text ends here: more bytes could complete a character
};

// The character that `text` (not empty) begins with.
Utf8Step DecodeUtf8(std::string_view text);

// Bytes of the character that `text` (not empty) ends with; 1 where that is not valid.
size_t LastCharacterLength(std::string_view text);

bool IsValidUtf8(std::string_view text);
void AppendUtf8(char32_t code_point, std::string& out);

// General categories L and N of Unicode 16.
bool IsLetter(char32_t code_point);
bool IsNumber(char32_t code_point);
// The property White_Space: what \s means in the regular expressions of tokenizers.
bool IsWhiteSpace(char32_t code_point);

}  // namespace terrace
