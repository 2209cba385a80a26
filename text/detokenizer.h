// Streaming detokenizer: token ids in, whole UTF-8 characters out. Owned by one stream; one thread at a time.
// What is pushed goes on from a prompt: a space in front of its first word is the model's and stays, as in
// llama.cpp and vLLM, so that prompt and answer joined are the text of all tokens.
#pragma once

#include <span>
#include <string>

#include "text/tokenizer.h"

namespace terrace {

class Detokenizer {
 public:
  // `tokenizer` outlives this object. Control tokens give "", or `with_control` their text.
  explicit Detokenizer(const Tokenizer& tokenizer, bool with_control = false)
      : tokenizer_(tokenizer), with_control_(with_control) {}

  // The text that `token` completes: never part of a character. Bytes that can no longer become a character
  // come out as U+FFFD.
  std::string Push(TokenId token);
  // What is left at the end of the stream: "" or one U+FFFD for a character that was never completed.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  const bool with_control_;
  std::string pending_;  // at most 3 bytes: the valid start of a character
};

// The text of a whole prompt, control tokens written out, without a space that encoding put in front.
std::string PromptText(const Tokenizer& tokenizer, std::span<const TokenId> tokens);

}  // namespace terrace
