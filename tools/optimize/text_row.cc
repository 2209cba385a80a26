#include "tools/optimize/text_row.h"

#include <algorithm>

#include "base/json.h"

namespace terrace {
namespace {

StatusOr<std::vector<ChatMessage>> Messages(const Json& list) {
  std::vector<ChatMessage> messages;
  for (const Json& each : list) {
    if (!each.is_object()) return InvalidArgument("message ", messages.size(), " is not an object");
    ChatMessage message;
    ASSIGN_OR_RETURN(message.role, StringMember(each, "role"));
    ASSIGN_OR_RETURN(message.content, StringMember(each, "content"));
    messages.push_back(std::move(message));
  }
  return messages;
}

}  // namespace

StatusOr<TextRow> ParseTextRow(std::string_view line) {
  ASSIGN_OR_RETURN(const Json row, ParseJson(line));
  if (!row.is_object()) return InvalidArgument("not a JSON object");
  const auto list = row.find("messages");
  if (list != row.end() && !list->is_array()) return InvalidArgument("\"messages\" is not a list");
  TextRow out;
  if (list == row.end() || list->empty()) {
    if (!row.contains("text") && !row.contains("expected"))
      return InvalidArgument("has none of \"messages\", \"text\" and \"expected\"");
    ASSIGN_OR_RETURN(out.text, StringMember(row, row.contains("text") ? "text" : "expected"));
    return out;
  }
  ASSIGN_OR_RETURN(out.messages, Messages(*list));
  if (row.contains("expected")) {
    ASSIGN_OR_RETURN(out.answer, StringMember(row, "expected"));
  }
  return out;
}

std::vector<std::string_view> SplitLines(std::string_view text) {
  std::vector<std::string_view> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

Status CheckTokens(std::span<const TokenId> tokens, uint32_t vocab_size) {
  for (const TokenId token : tokens) {
    if (token < 0 || static_cast<uint32_t>(token) >= vocab_size)
      return DataLoss("token ", token, " of a vocabulary of ", vocab_size);
  }
  return Status();
}

}  // namespace terrace
