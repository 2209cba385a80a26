// What a model reads of a text or of a chat with its answer, when its distributions are looked at.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "text/text_assets.h"

namespace terrace {

struct AnsweredText {
  std::vector<TokenId> tokens = {};
  size_t answer_begin = 0;  // as many as there are tokens where there is no answer
};

// The chat's prompt, the answer and the token that ends it; a chat without an answer as it is. Errors of
// EncodeChat.
StatusOr<AnsweredText> EncodeAnswered(const TextAssets& text, const std::vector<ChatMessage>& messages,
                                      const std::optional<std::string>& answer);

// Text of its own: as the beginning of a completion.
AnsweredText EncodePlain(const TextAssets& text, const std::string& plain);

}  // namespace terrace
