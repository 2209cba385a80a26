// Tokenizers for models of any vocabulary size. Pure.
#pragma once

#include <cstddef>

#include "base/status.h"
#include "text/text_assets.h"

namespace terrace {

// A token for each byte and a few control tokens, no merges, and a chat template: a text of n bytes is n
// tokens.
TextAssets ByteLevelText();

// `assets` with unused tokens "<|unused_N|>" added up to `vocab_size`. INVALID_ARGUMENT when there are more
// tokens than that.
StatusOr<TextAssets> PadVocabulary(const TextAssets& assets, size_t vocab_size);

}  // namespace terrace
