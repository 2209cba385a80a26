// The tokenizer and the chat template inside a GGUF file.
#pragma once

#include <string>
#include <vector>

#include "text/text_assets.h"
#include "worker/formats/gguf_writer.h"

namespace terrace {

// From the tokenizer.* keys. DATA_LOSS naming `file`, the key and its byte offset, with the reasons of
// MakeBpeTokenizer and ChatTemplate::Parse, missing_key, type_mismatch, and unsupported_tokenizer for a
// tokenizer.ggml.model that is neither
//   gpt2   byte-level BPE: what LoadTextAssets gives for the same model's folder. With the pre-tokenizer
//          "qwen2" text is brought to NFC first, as those models' own files say; llama.cpp leaves that out.
//   llama  SentencePiece with scores, as llama.cpp reads it: it joins tokens by score and, of equal ones,
//   from
//          the left. Folders have merges made of the scores instead, which may part a run of spaces
//          otherwise. Unlike in llama.cpp, text never becomes a control token because its letters are joined.
// A key of Terrace's own, "terrace.tokenizer", has a whole tokenizer (Tokenizer::Serialize) that the others
// cannot express; special tokens and chat template are those of the other keys.
StatusOr<TextAssets> LoadGgufText(const GgufMetadata& metadata, const std::string& file);

// The inverse: LoadGgufText gives the same tokenizer. "terrace.tokenizer" is written only where it would not
// without; llama.cpp then goes by scores that are as near as scores get to the merges. Tokens from
// `used_tokens` on are marked as unused. INVALID_ARGUMENT for more end tokens than GGUF has keys for (eos,
// eot and eom).
StatusOr<std::vector<GgufKey>> GgufTextKeys(const TextAssets& assets, size_t used_tokens);

}  // namespace terrace
