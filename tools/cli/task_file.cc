#include "tools/cli/task_file.h"

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <utility>

#include "base/json.h"
#include "base/mapped_file.h"

namespace terrace {
namespace {

constexpr size_t kMaxStrings = 100;  // of each list of a row

StatusOr<v1::ChatMessages> MessagesFrom(const Json& list) {
  if (!list.is_array()) return InvalidArgument("messages are not a list");
  v1::ChatMessages chat;
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].is_object()) return InvalidArgument("message ", i, " is not an object");
    v1::ChatMessage& message = *chat.add_messages();
    for (const auto& [key, field] :
         {std::pair("role", message.mutable_role()), {"content", message.mutable_content()}}) {
      StatusOr<std::string> text = StringMember(list[i], key);
      if (!text.ok()) return Annotate(text.status(), Concat("message ", i));
      *field = *std::move(text);
    }
  }
  return chat;
}

bool IsBlank(std::string_view text) { return text.find_first_not_of(" \t\r\n\v\f") == text.npos; }

// A list of strings, none of them blank; empty where the member is absent.
StatusOr<std::vector<std::string>> StringsField(const Json& object, const char* key) {
  std::vector<std::string> out;
  const auto found = object.find(key);
  if (found == object.end()) return out;
  if (!found->is_array() || found->empty() || found->size() > kMaxStrings)
    return InvalidArgument("\"", key, "\" is not a list of 1 to ", kMaxStrings, " strings");
  for (const Json& each : *found) {
    if (!each.is_string() || IsBlank(each.get_ref<const std::string&>()))
      return InvalidArgument("\"", key, "\" has an element that is no string, or a blank one");
    out.push_back(each.get<std::string>());
  }
  return out;
}

// What only rows of one checker may have.
Status CheckMembers(const Json& object, bool is_allowed, std::initializer_list<const char*> keys,
                    const char* checker) {
  for (const char* const key : keys) {
    if (!is_allowed && object.contains(key))
      return InvalidArgument("\"", key, "\" needs the checker ", checker);
  }
  return {};
}

Status ParseRefusal(const Json& object, Expectation& out) {
  if (const auto refuses = object.find("refuses"); refuses != object.end()) {
    if (!refuses->is_boolean()) return InvalidArgument("\"refuses\" is not true or false");
    out.refuses = refuses->get<bool>();
  }
  if (object.contains("openings")) {
    if (!out.refuses) return InvalidArgument("\"openings\" needs \"refuses\": true");
    ASSIGN_OR_RETURN(out.openings, StringsField(object, "openings"));
  }
  if (!out.refuses) {
    out.openings.clear();
  } else if (out.openings.empty()) {
    if (IsBlank(out.expected))
      return InvalidArgument("a row that refuses has neither \"expected\" nor \"openings\"");
    out.openings = {out.expected};
  }
  return {};
}

Status ParseContains(const Json& object, Expectation& out) {
  if (object.contains("all") || object.contains("any")) {
    ASSIGN_OR_RETURN(out.all, StringsField(object, "all"));
    ASSIGN_OR_RETURN(out.any, StringsField(object, "any"));
  } else if (IsBlank(out.expected)) {
    return InvalidArgument("a row of the checker contains has none of \"all\", \"any\" and \"expected\"");
  }
  return {};
}

StatusOr<Expectation> ParseExpectation(const Json& object) {
  ASSIGN_OR_RETURN(std::string expected, StringMember(object, "expected"));
  ASSIGN_OR_RETURN(const std::string name, StringMember(object, "checker"));
  ASSIGN_OR_RETURN(const Checker checker, ParseChecker(name));
  Expectation out = Expect(checker, std::move(expected));
  const bool is_refusal = checker == Checker::kRefusal, is_contains = checker == Checker::kContains;
  RETURN_IF_ERROR(CheckMembers(object, is_refusal, {"refuses", "openings"}, "refusal"));
  RETURN_IF_ERROR(CheckMembers(object, is_contains, {"all", "any"}, "contains"));
  if (is_refusal) RETURN_IF_ERROR(ParseRefusal(object, out));
  if (is_contains) RETURN_IF_ERROR(ParseContains(object, out));
  return out;
}

StatusOr<TaskRow> ParseRow(std::string_view line) {
  ASSIGN_OR_RETURN(const Json object, ParseJson(line));
  if (!object.is_object()) return InvalidArgument("not a JSON object");
  TaskRow row;
  ASSIGN_OR_RETURN(row.id, StringMember(object, "id"));
  ASSIGN_OR_RETURN(row.task, StringMember(object, "task"));
  ASSIGN_OR_RETURN(static_cast<Expectation&>(row), ParseExpectation(object));
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

// What a row says beyond its checker; nothing where it says no more, so that the digests of such sets stay.
void AddOwnTerms(const Expectation& row, Hasher& hasher) {
  if (row == Expect(row.checker, row.expected)) return;
  hasher.Add("terms of its own").Add(static_cast<uint64_t>(row.refuses ? 1 : 0));
  for (const auto* const list : {&row.openings, &row.all, &row.any}) {
    hasher.Add(static_cast<uint64_t>(list->size()));
    for (const std::string& text : *list) hasher.Add(text);
  }
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
    AddOwnTerms(row, hasher);
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
