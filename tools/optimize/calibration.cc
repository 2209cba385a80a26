#include "tools/optimize/calibration.h"

#include <algorithm>
#include <string_view>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/shuffle.h"

namespace terrace {
namespace {

StatusOr<std::string> Text(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) return InvalidArgument("\"", key, "\" is not a string");
  return found->get<std::string>();
}

StatusOr<std::vector<ChatMessage>> Messages(const Json& list) {
  std::vector<ChatMessage> messages;
  for (const Json& each : list) {
    if (!each.is_object()) return InvalidArgument("message ", messages.size(), " is not an object");
    ChatMessage message;
    ASSIGN_OR_RETURN(message.role, Text(each, "role"));
    ASSIGN_OR_RETURN(message.content, Text(each, "content"));
    messages.push_back(std::move(message));
  }
  return messages;
}

StatusOr<std::vector<TokenId>> ParseRow(std::string_view line, const TextAssets& text) {
  ASSIGN_OR_RETURN(const Json row, ParseJson(line));
  if (!row.is_object()) return InvalidArgument("not a JSON object");
  const auto list = row.find("messages");
  if (list != row.end() && !list->is_array()) return InvalidArgument("\"messages\" is not a list");
  if (list == row.end() || list->empty()) {
    ASSIGN_OR_RETURN(const std::string plain, Text(row, row.contains("text") ? "text" : "expected"));
    return text.EncodePrompt(plain);
  }
  ASSIGN_OR_RETURN(std::vector<ChatMessage> messages, Messages(*list));
  const bool is_answered = row.contains("expected");
  if (is_answered) {
    ASSIGN_OR_RETURN(std::string answer, Text(row, "expected"));
    messages.push_back({.role = "assistant", .content = std::move(answer)});
  }
  return text.EncodeChat(messages, /*add_generation_prompt=*/!is_answered);
}

std::vector<std::string_view> Lines(std::string_view text) {
  std::vector<std::string_view> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

}  // namespace

StatusOr<CalibrationSet> LoadCalibration(const CalibrationOptions& options, const TextAssets& text,
                                         const ModelConfig& config) {
  ASSIGN_OR_RETURN(const std::string file, ReadFile(options.path));
  const std::vector<std::string_view> lines = Lines(file);
  if (lines.empty()) return DataLoss(options.path, ": no rows to calibrate with");
  std::vector<size_t> taken = ShuffledIndices(lines.size(), options.seed);
  if (options.samples > 0 && options.samples < taken.size()) taken.resize(options.samples);
  std::ranges::sort(taken);

  CalibrationSet set = {.rows = lines.size(), .digest = HashBytes(file)};
  for (const size_t i : taken) {
    auto tokens = ParseRow(lines[i], text);
    if (!tokens.ok()) {
      const Status error = DataLoss(options.path, ":", i + 1, ": ", Message(tokens.status()));
      return WithReason(error, Reason(tokens.status()));
    }
    for (const TokenId token : *tokens) {
      if (token < 0 || static_cast<uint32_t>(token) >= config.vocab_size)
        return DataLoss(options.path, ":", i + 1, ": token ", token, " of a vocabulary of ",
                        config.vocab_size);
    }
    if (tokens->size() > config.context_length) tokens->resize(config.context_length);
    if (tokens->empty()) continue;
    set.tokens += tokens->size();
    set.sequences.push_back(*std::move(tokens));
  }
  if (set.sequences.empty()) return DataLoss(options.path, ": no row has a token to calibrate with");
  return set;
}

}  // namespace terrace
