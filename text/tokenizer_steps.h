// The steps of a tokenizer.json (normalizer, pre_tokenizer, decoder) and the kinds of tokenizers that they
// are, both ways. Pure functions.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"
#include "text/json_fields.h"

namespace terrace {

struct TokenizerSteps {
  std::string pre;             // a name of pre_tokenizer.h
  bool is_normalized = false;  // to NFC
};

// DATA_LOSS naming the key for steps that are not supported: unsupported_tokenizer, unsupported_normalizer,
// unsupported_pre_tokenizer. `root` and `model` are the file's.
StatusOr<TokenizerSteps> ReadSteps(const JsonReader& root, const JsonReader& model);

// The members normalizer, pre_tokenizer and decoder; `steps.pre` is no alias.
Json StepsJson(const TokenizerSteps& steps);

}  // namespace terrace
