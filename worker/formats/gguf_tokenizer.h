// The byte-level BPE tokenizer and the chat template inside a GGUF file.
#pragma once

#include <string>

#include "text/text_assets.h"
#include "worker/formats/gguf_file.h"

namespace terrace {

// What LoadTextAssets gives for the same model's folder, from the tokenizer.* keys. DATA_LOSS naming `file`,
// the key and its byte offset, with the reasons of MakeBpeTokenizer and ChatTemplate::Parse, missing_key,
// type_mismatch, and unsupported_tokenizer for a tokenizer.ggml.model other than gpt2.
StatusOr<TextAssets> LoadGgufText(const GgufMetadata& metadata, const std::string& file);

}  // namespace terrace
