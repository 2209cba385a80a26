// What a Hugging Face style model folder says about its tokenizer outside tokenizer.json. Values only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace terrace {

// From tokenizer_config.json (and chat_template.jinja, which overrides its chat_template).
struct TokenizerConfig {
  std::optional<std::string> bos_token, eos_token, pad_token, chat_template;
  std::optional<bool> add_bos_token;
};

// From generation_config.json.
struct GenerationConfig {
  std::optional<int64_t> bos_token_id, pad_token_id;
  std::vector<int64_t> eos_token_ids;
};

// A file that is absent says nothing. DATA_LOSS names file and key.
StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& directory);
StatusOr<GenerationConfig> ReadGenerationConfig(const std::string& directory);

}  // namespace terrace
