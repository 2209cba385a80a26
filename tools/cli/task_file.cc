#include "tools/cli/task_file.h"

#include <algorithm>
#include <iterator>

#include "base/json.h"
#include "base/mapped_file.h"

namespace terrace {
namespace {

StatusOr<std::string> StringField(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) return InvalidArgument("\"", key, "\" is not a string");
  return found->get<std::string>();
}

StatusOr<v1::ChatMessages> MessagesFrom(const Json& list) {
  if (!list.is_array()) return InvalidArgument("messages are not a list");
  v1::ChatMessages chat;
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].is_object()) return InvalidArgument("message ", i, " is not an object");
    v1::ChatMessage& message = *chat.add_messages();
    for (const auto& [key, field] :
         {std::pair("role", message.mutable_role()), {"content", message.mutable_content()}}) {
      StatusOr<std::string> text = StringField(list[i], key);
      if (!text.ok()) return Annotate(text.status(), Concat("message ", i));
      *field = *std::move(text);
    }
  }
  return chat;
}

StatusOr<TaskRow> ParseRow(std::string_view line) {
  ASSIGN_OR_RETURN(const Json object, ParseJson(line));
  if (!object.is_object()) return InvalidArgument("not a JSON object");
  TaskRow row;
  ASSIGN_OR_RETURN(row.id, StringField(object, "id"));
  ASSIGN_OR_RETURN(row.task, StringField(object, "task"));
  ASSIGN_OR_RETURN(row.expected, StringField(object, "expected"));
  ASSIGN_OR_RETURN(const std::string checker, StringField(object, "checker"));
  ASSIGN_OR_RETURN(row.checker, ParseChecker(checker));
  const auto difficulty = object.find("difficulty");
  if (difficulty == object.end() || !difficulty->is_number_integer()) {
    return InvalidArgument("\"difficulty\" is not an integer");
  }
  row.difficulty = difficulty->get<int64_t>();
  const auto messages = object.find("messages");
  if (messages == object.end()) return InvalidArgument("\"messages\" is missing");
  ASSIGN_OR_RETURN(row.chat, MessagesFrom(*messages));
  if (row.chat.messages().empty() && row.checker != Checker::kNone)
    return InvalidArgument("\"messages\" is empty");
  return row;
}

}  // namespace

StatusOr<std::vector<TaskRow>> LoadTaskFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  std::vector<TaskRow> rows;
  size_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    ++line_number;
    StatusOr<TaskRow> row = ParseRow(std::string_view(text).substr(begin, end - begin));
    if (!row.ok()) return DataLoss(path, ":", line_number, ": ", Message(row.status()));
    rows.push_back(*std::move(row));
    begin = end + 1;
  }
  if (rows.empty()) return DataLoss(path, ": no rows");
  return rows;
}

std::vector<TaskRow> ScoredRows(const std::vector<TaskRow>& rows) {
  std::vector<TaskRow> scored;
  std::ranges::copy_if(rows, std::back_inserter(scored),
                       [](const TaskRow& row) { return row.checker != Checker::kNone; });
  return scored;
}

Hash128 TaskSetDigest(const std::vector<TaskRow>& rows) {
  Hasher hasher;
  for (const TaskRow& row : rows) {
    hasher.Add(row.id).Add(row.task).Add(row.expected).Add(static_cast<uint64_t>(row.checker));
    hasher.Add(static_cast<uint64_t>(row.chat.messages_size()));
    for (const v1::ChatMessage& message : row.chat.messages())
      hasher.Add(message.role()).Add(message.content());
  }
  return hasher.Finish();
}

StatusOr<v1::ChatMessages> ParseMessages(std::string_view json) {
  ASSIGN_OR_RETURN(const Json list, ParseJson(json));
  ASSIGN_OR_RETURN(v1::ChatMessages chat, MessagesFrom(list));
  if (chat.messages().empty()) return InvalidArgument("the list of messages is empty");
  return chat;
}

}  // namespace terrace
