// A tokenizer and chat template as the files of a Hugging Face style folder: the inverse of LoadTextAssets.
// Pure.
#pragma once

#include <map>
#include <string>

#include "text/text_assets.h"

namespace terrace {

// What `tokenizer` is made of: MakeBpeTokenizer of it makes the same tokenizer again.
BpeData DataOf(const Tokenizer& tokenizer);

// File name -> text, of tokenizer.json, tokenizer_config.json and generation_config.json. What LoadTextAssets
// reads from them has the digest of `assets`.
std::map<std::string, std::string> TextFiles(const TextAssets& assets);

}  // namespace terrace
