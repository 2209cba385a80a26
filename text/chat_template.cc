#include "text/chat_template.h"

#include <algorithm>
#include <utility>

#include "base/json.h"
#include "text/jinja/evaluator.h"
#include "text/jinja/parser.h"
#include "text/tokenizer_config.h"

namespace terrace {

struct ChatTemplate::Program {
  std::string source;
  TemplateProgram program;
  ToolCallFormat tool_call_format = ToolCallFormat::kNone;
};

namespace {

using OrderedJson = nlohmann::ordered_json;  // templates print members in the order they were written

Value Untrusted(std::string text) { return MakeText(MarkedString(std::move(text), /*trusted=*/false)); }

StatusOr<Value> FromJson(const OrderedJson& json, int depth = 0) {
  if (depth > kMaxTemplateDepth) return TemplateError("JSON nested deeper than ", kMaxTemplateDepth);
  if (json.is_string()) return Untrusted(json.get<std::string>());
  if (json.is_boolean()) return Value{json.get<bool>()};
  if (json.is_number_integer() && !(json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX))
    return Value{json.get<int64_t>()};
  if (json.is_number()) return Value{json.get<double>()};
  if (json.is_array()) {
    ValueList items;
    for (const OrderedJson& item : json) {
      ASSIGN_OR_RETURN(Value value, FromJson(item, depth + 1));
      items.push_back(std::move(value));
    }
    return MakeList(std::move(items));
  }
  if (json.is_object()) {
    ValueDict items;
    for (const auto& [key, item] : json.items()) {
      ASSIGN_OR_RETURN(Value value, FromJson(item, depth + 1));
      items.emplace_back(Untrusted(key), std::move(value));
    }
    return MakeDict(std::move(items));
  }
  return Value{NoneValue()};
}

StatusOr<Value> FromJsonText(const std::string& text) {
  const OrderedJson json = OrderedJson::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return TemplateError("not JSON");
  return FromJson(json);
}

// {"type": "function", "function": `function`}, after the id of a call.
StatusOr<Value> FunctionEntry(ValueDict function, const std::string& id) {
  ASSIGN_OR_RETURN(Value inner, MakeDict(std::move(function)));
  ValueDict entry;
  if (!id.empty()) entry.emplace_back(MakeText("id"), Untrusted(id));
  entry.emplace_back(MakeText("type"), MakeText("function"));
  entry.emplace_back(MakeText("function"), std::move(inner));
  return MakeDict(std::move(entry));
}

StatusOr<Value> ToolEntry(const Tool& tool) {
  ValueDict function = {{MakeText("name"), Untrusted(tool.name)}};
  if (!tool.description.empty()) function.emplace_back(MakeText("description"), Untrusted(tool.description));
  if (!tool.parameters.empty()) {
    ASSIGN_OR_RETURN(Value parameters, FromJsonText(tool.parameters));
    function.emplace_back(MakeText("parameters"), std::move(parameters));
  }
  return FunctionEntry(std::move(function), "");
}

StatusOr<Value> CallEntry(const ToolCall& call) {
  ASSIGN_OR_RETURN(Value arguments, FromJsonText(call.arguments));
  return FunctionEntry(
      {{MakeText("name"), Untrusted(call.name)}, {MakeText("arguments"), std::move(arguments)}}, call.id);
}

template <typename Entry>
StatusOr<Value> ListOf(const std::vector<Entry>& entries, StatusOr<Value> (*make)(const Entry&)) {
  ValueList list;
  for (const Entry& entry : entries) {
    ASSIGN_OR_RETURN(Value value, make(entry));
    list.push_back(std::move(value));
  }
  return MakeList(std::move(list));
}

StatusOr<Value> MessageEntry(const ChatMessage& message) {
  const bool has_no_content = message.content.empty() && !message.tool_calls.empty();
  ValueDict entry = {{MakeText("role"), MakeText(message.role)},
                     {MakeText("content"), has_no_content ? Value{NoneValue()} : Untrusted(message.content)}};
  if (!message.tool_calls.empty()) {
    ASSIGN_OR_RETURN(Value calls, ListOf(message.tool_calls, &CallEntry));
    entry.emplace_back(MakeText("tool_calls"), std::move(calls));
  }
  if (!message.tool_call_id.empty())
    entry.emplace_back(MakeText("tool_call_id"), Untrusted(message.tool_call_id));
  if (!message.name.empty()) entry.emplace_back(MakeText("name"), Untrusted(message.name));
  return MakeDict(std::move(entry));
}

}  // namespace

ChatTemplate::ChatTemplate(std::unique_ptr<Program> program) : program_(std::move(program)) {}
ChatTemplate::~ChatTemplate() = default;

const std::string& ChatTemplate::source() const { return program_->source; }
ToolCallFormat ChatTemplate::tool_call_format() const { return program_->tool_call_format; }

StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source) {
  ASSIGN_OR_RETURN(TemplateProgram program, ParseTemplate(source));
  const bool has_tools = std::ranges::find(program.names, "tools") != program.names.end();
  const ToolCallFormat format = has_tools ? DetectToolCallFormat(source) : ToolCallFormat::kNone;
  auto whole = std::make_unique<Program>(Program{std::string(source), std::move(program), format});
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(whole)));
}

StatusOr<MarkedText> ChatTemplate::Render(const ChatTemplateInput& input) const {
  ASSIGN_OR_RETURN(const Value messages, ListOf(input.messages, &MessageEntry));
  Value tools{NoneValue()};
  if (!input.tools.empty()) {
    ASSIGN_OR_RETURN(tools, ListOf(input.tools, &ToolEntry));
  }
  ASSIGN_OR_RETURN(
      const MarkedString output,
      RenderTemplate(program_->program, {{"messages", messages},
                                         {"add_generation_prompt", Value{input.add_generation_prompt}},
                                         {"bos_token", MakeText(input.bos_token)},
                                         {"eos_token", MakeText(input.eos_token)},
                                         {"tools", tools},
                                         {"documents", Value{NoneValue()}}}));
  MarkedText text{.text = output.bytes(), .control = {}};
  for (const auto& [begin, end] : output.TrustedRanges()) text.control.push_back({begin, end});
  return text;
}

StatusOr<std::unique_ptr<ChatTemplate>> LoadChatTemplate(const std::string& directory) {
  ASSIGN_OR_RETURN(const TokenizerConfig config, ReadTokenizerConfig(directory));
  if (!config.chat_template) return NotFound(directory, ": no chat template");
  auto chat_template = ChatTemplate::Parse(*config.chat_template);
  if (!chat_template.ok()) return Annotate(chat_template.status(), directory + "/tokenizer_config.json");
  return chat_template;
}

}  // namespace terrace
