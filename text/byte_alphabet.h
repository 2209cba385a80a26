// GPT-2's byte-level alphabet: a printable character for each byte, in which byte-level BPE vocabularies are
// written. Printable Latin-1 bytes stand for themselves, the others for U+0100, U+0101, ... in order.
#pragma once

#include <string>
#include <string_view>

namespace terrace {

// `bytes` written in the alphabet.
std::string ToByteAlphabet(std::string_view bytes);
// The bytes that `token` (valid UTF-8) stands for; characters outside the alphabet stand for their own UTF-8.
std::string FromByteAlphabet(std::string_view token);

}  // namespace terrace
