// The byte-level BPE tokenizer and the chat template inside a GGUF file.
#pragma once

#include <string>
#include <vector>

#include "text/text_assets.h"
#include "worker/formats/gguf_writer.h"

namespace terrace {

// What LoadTextAssets gives for the same model's folder, from the tokenizer.* keys. DATA_LOSS naming `file`,
// the key and its byte offset, with the reasons of MakeBpeTokenizer and ChatTemplate::Parse, missing_key,
// type_mismatch, and unsupported_tokenizer for a tokenizer.ggml.model other than gpt2.
StatusOr<TextAssets> LoadGgufText(const GgufMetadata& metadata, const std::string& file);

// The inverse. Tokens from `used_tokens` on are marked as unused. INVALID_ARGUMENT for more end tokens than
// GGUF has keys for (eos, eot and eom).
StatusOr<std::vector<GgufKey>> GgufTextKeys(const TextAssets& assets, size_t used_tokens);

}  // namespace terrace
