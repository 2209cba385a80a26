// Unicode's Normalization Form C, which some byte-level tokenizers bring text to first (Qwen's). Of Unicode
// 9, as in Hugging Face's tokenizers: marks that came later stay where they are. Pure functions, thread-safe.
#pragma once

#include <string>
#include <string_view>

namespace terrace {

// Whether a look at each character by itself shows that ToNfc changes nothing. Fast for ASCII.
bool IsPlainlyNfc(std::string_view text);

// Bytes that are not UTF-8 stay as they are.
std::string ToNfc(std::string_view text);

}  // namespace terrace
