// Streaming detokenizer: token ids in, whole UTF-8 characters out. Owned by one stream; one thread at a time.
#pragma once

#include <string>

#include "text/tokenizer.h"

namespace terrace {

class Detokenizer {
 public:
  // `tokenizer` outlives this object.
  explicit Detokenizer(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // The text that `token` completes: never part of a character. Bytes that can no longer become a character
  // come out as U+FFFD. Control tokens give "".
  std::string Push(TokenId token);
  // What is left at the end of the stream: "" or one U+FFFD for a character that was never completed.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  std::string pending_;  // at most 3 bytes: the valid start of a character
};

}  // namespace terrace
