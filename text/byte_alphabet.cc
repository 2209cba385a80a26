#include "text/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "text/unicode.h"

namespace terrace {
namespace {

struct Tables {
  std::array<char32_t, 256> character;  // by byte
  std::array<int, 512> byte;            // by character, -1 outside the alphabet
};

constexpr Tables kTables = [] {
  Tables tables{};
  tables.byte.fill(-1);
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool is_printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    const char32_t character = is_printable ? static_cast<char32_t>(byte) : next++;
    tables.character[byte] = character;
    tables.byte[character] = byte;
  }
  return tables;
}();

}  // namespace

std::string ToByteAlphabet(std::string_view bytes) {
  std::string out;
  for (const char byte : bytes) AppendUtf8(kTables.character[static_cast<uint8_t>(byte)], out);
  return out;
}

std::string FromByteAlphabet(std::string_view token) {
  std::string out;
  while (!token.empty()) {
    const Utf8Step step = DecodeUtf8(token);
    const int byte = step.code_point < kTables.byte.size() ? kTables.byte[step.code_point] : -1;
    if (byte >= 0) {
      out.push_back(static_cast<char>(byte));
    } else {
      out.append(token.substr(0, step.length));
    }
    token.remove_prefix(step.length);
  }
  return out;
}

}  // namespace terrace
