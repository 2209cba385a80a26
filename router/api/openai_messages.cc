#include "router/api/openai_messages.h"

#include <string>
#include <utility>

#include "router/request/param.h"
#include "router/request/tools.h"

namespace terrace {
namespace {

constexpr std::string_view kInvalid = "invalid_value";

StatusOr<std::string> ParseContent(const Fields& message) {
  const Json* content = message.Find("content");
  if (content == nullptr) return message.Error("content", "must not be null");
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array() || content->empty())
    return message.Error("content", "must be a string or a list of parts");
  std::string text;
  for (size_t i = 0; i < content->size(); ++i) {
    const std::string path = Concat(message.Param("content"), "[", i, "]");
    const Json& part = (*content)[i];
    if (!part.is_object()) return ParamError(kInvalid, path, "must be an object");
    const Fields fields(part, path + ".");
    std::string type, piece;
    RETURN_IF_ERROR(fields.Read("type", type));
    if (type != "text")
      return ParamError("unsupported_content", path, "only parts of type text are supported");
    if (fields.Find("text") == nullptr) return fields.Error("text", "is missing");
    RETURN_IF_ERROR(fields.Read("text", piece));
    text += piece;
  }
  return text;
}

// The member `function` of a tool or call, whose type must be "function" when it is given.
StatusOr<const Json*> FunctionOf(const Fields& entry) {
  std::string type = "function";
  RETURN_IF_ERROR(entry.Read("type", type));
  if (type != "function") return entry.Unsupported("type", "only functions are supported");
  const Json* function = entry.Find("function");
  if (function == nullptr || !function->is_object()) return entry.Error("function", "must be an object");
  return function;
}

StatusOr<std::vector<ToolCall>> ParseToolCalls(const Fields& message) {
  std::vector<ToolCall> out;
  const Json* calls = message.Find("tool_calls");
  if (calls == nullptr) return out;
  if (!calls->is_array()) return message.Error("tool_calls", "must be a list");
  for (size_t i = 0; i < calls->size(); ++i) {
    const std::string path = Concat(message.Param("tool_calls"), "[", i, "]");
    if (!(*calls)[i].is_object()) return ParamError(kInvalid, path, "must be an object");
    const Fields entry((*calls)[i], path + ".");
    ASSIGN_OR_RETURN(const Json* json, FunctionOf(entry));
    const Fields function(*json, path + ".function.");
    ToolCall& call = out.emplace_back();
    RETURN_IF_ERROR(entry.Read("id", call.id));
    RETURN_IF_ERROR(function.Read("name", call.name));
    RETURN_IF_ERROR(function.Read("arguments", call.arguments));
    if (call.arguments.empty()) call.arguments = "{}";
  }
  return out;
}

StatusOr<ChatMessage> ParseMessage(const Fields& message) {
  for (const char* name : {"function_call", "audio"}) {
    if (message.Find(name) != nullptr) return message.Unsupported(name, "is not supported");
  }
  ChatMessage out;
  RETURN_IF_ERROR(message.Read("role", out.role));
  if (out.role == "developer") out.role = "system";  // OpenAI's newer name for it
  ASSIGN_OR_RETURN(out.tool_calls, ParseToolCalls(message));
  RETURN_IF_ERROR(message.Read("tool_call_id", out.tool_call_id));
  RETURN_IF_ERROR(message.Read("name", out.name));
  if (!out.tool_calls.empty() && message.Find("content") == nullptr) return out;
  ASSIGN_OR_RETURN(out.content, ParseContent(message));
  return out;
}

StatusOr<Tool> ParseTool(const Json& json, const std::string& path, const nlohmann::ordered_json& ordered) {
  if (!json.is_object()) return ParamError(kInvalid, path, "must be an object");
  const Fields entry(json, path + ".");
  if (entry.Find("type") == nullptr) return entry.Error("type", "is missing");
  ASSIGN_OR_RETURN(const Json* in, FunctionOf(entry));
  const Fields function(*in, path + ".function.");
  Tool tool;
  bool is_strict = false;
  RETURN_IF_ERROR(function.Read("name", tool.name));
  RETURN_IF_ERROR(function.Read("description", tool.description));
  RETURN_IF_ERROR(function.Read("strict", is_strict));
  if (is_strict) return function.Unsupported("strict", "arguments are not constrained to the schema");
  if (function.Find("parameters") != nullptr) tool.parameters = ordered["function"]["parameters"].dump();
  return tool;
}

Status ParseToolChoice(const Fields& request, RequestFields& out) {
  const Json* choice = request.Find("tool_choice");
  if (choice == nullptr) return {};
  out.may_call_tools = *choice != "none";
  if (*choice == "none") return {};
  if (!choice->is_string() && !choice->is_object())
    return request.Error("tool_choice", "must be a string or an object");
  if (choice->is_object() || *choice == "required")
    return request.Unsupported("tool_choice",
                               "answers are not constrained: only none and auto are supported");
  if (*choice != "auto") return request.Error("tool_choice", "must be none, auto, required or an object");
  return out.tools.empty() ? request.Error("tool_choice", "needs tools") : Status();
}

// Values and keys, up to `limit` and a little more.
size_t CountNodes(const Json& json, size_t limit) {
  size_t nodes = 1;
  if (!json.is_structured()) return nodes;
  for (auto item = json.begin(); item != json.end() && nodes <= limit; ++item) {
    nodes += json.is_object() + CountNodes(*item, limit);
  }
  return nodes;
}

// What keeps its order looks a key up among all before it: no more of them than any tool may have.
Status CheckToolsSize(const Fields& request, const Json& tools) {
  if (tools.size() > kMaxTools) return request.Error("tools", tools.size(), " entries, limit ", kMaxTools);
  for (const Json& tool : tools) {
    if (CountNodes(tool, kMaxToolJsonNodes) <= kMaxToolJsonNodes) continue;
    return request.Error("tools", "one has more than ", kMaxToolJsonNodes, " values");
  }
  return {};
}

// The body's tools with their members in the order they were sent. ParseBody has read it without error.
nlohmann::ordered_json ParseOrderedTools(std::string_view body) {
  using Ordered = nlohmann::ordered_json;
  const std::string_view tools = FindJsonMember(body, "tools");
  if (!tools.empty()) return Ordered::parse(tools);
  const auto keep = [](int depth, Ordered::parse_event_t event, const Ordered& key) {
    return event != Ordered::parse_event_t::key || depth != 1 || key == "tools";
  };
  return Ordered::parse(body, keep)["tools"];
}

}  // namespace

StatusOr<std::vector<ChatMessage>> ParseMessages(const Fields& request) {
  const Json* messages = request.Find("messages");
  if (messages == nullptr || !messages->is_array()) return request.Error("messages", "must be a list");
  if (messages->size() > Request::kMaxMessages) {
    return request.Error("messages", messages->size(), " entries, limit ", Request::kMaxMessages);
  }
  std::vector<ChatMessage> out;
  for (size_t i = 0; i < messages->size(); ++i) {
    const std::string path = Concat("messages[", i, "]");
    if (!(*messages)[i].is_object()) return ParamError(kInvalid, path, "must be an object");
    ASSIGN_OR_RETURN(ChatMessage message, ParseMessage(Fields((*messages)[i], path + ".")));
    out.push_back(std::move(message));
  }
  return out;
}

Status ParseTools(const Fields& request, std::string_view body, RequestFields& out) {
  RETURN_IF_ERROR(request.Read("parallel_tool_calls", out.parallel_tool_calls));
  if (const Json* tools = request.Find("tools"); tools != nullptr) {
    if (!tools->is_array() || tools->empty()) return request.Error("tools", "must be a list of functions");
    RETURN_IF_ERROR(CheckToolsSize(request, *tools));
    const auto ordered = ParseOrderedTools(body);
    for (size_t i = 0; i < tools->size(); ++i) {
      ASSIGN_OR_RETURN(Tool tool, ParseTool((*tools)[i], Concat("tools[", i, "]"), ordered[i]));
      out.tools.push_back(std::move(tool));
    }
  }
  return ParseToolChoice(request, out);
}

}  // namespace terrace
