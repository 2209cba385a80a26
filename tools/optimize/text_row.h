// A row of a file of calibration or training text: JSON lines of chats and plain texts. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace terrace {

struct TextRow {
  std::vector<ChatMessage> messages = {};  // empty: plain text
  std::optional<std::string> answer = {};  // the assistant's to the messages
  std::string text = {};                   // plain, as of a completion
};

// An object with "messages" (a list of {"role", "content"}) and "expected" (a string, the answer to them) or,
// with no messages, plain text in "text" or "expected". Other fields do not matter. INVALID_ARGUMENT for a
// row that is not so, and the errors of ParseJson.
StatusOr<TextRow> ParseTextRow(std::string_view line);

// Lines of `text`, without their ends; they borrow from it.
std::vector<std::string_view> SplitLines(std::string_view text);

// DATA_LOSS for a token that a model of this vocabulary does not have.
Status CheckTokens(std::span<const TokenId> tokens, uint32_t vocab_size);

}  // namespace terrace
