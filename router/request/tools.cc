#include "router/request/tools.h"

#include <algorithm>
#include <set>
#include <string>

#include "base/json.h"
#include "router/request/param.h"

namespace terrace {
namespace {

constexpr std::string_view kInvalid = "invalid_value";

Status CheckName(const std::string& name, const std::string& param) {
  const auto fits = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  };
  if (!name.empty() && name.size() <= kMaxToolNameBytes && std::ranges::all_of(name, fits)) return {};
  return ParamError(kInvalid, param, "must be 1 to ", kMaxToolNameBytes, " letters, digits, _ or -");
}

Status CheckObject(const std::string& json, size_t max_bytes, const std::string& param) {
  const auto parsed = ParseJson(
      json, {.bytes = max_bytes, .depth = kMaxToolJsonDepth, .nodes = kMaxToolJsonNodes, .key_bytes = 1024});
  if (parsed.ok() && parsed->is_object()) return {};
  return ParamError(kInvalid, param, "must be a JSON object",
                    parsed.ok() ? "" : Concat("; ", Message(parsed.status())));
}

}  // namespace

Status CheckTools(const std::vector<Tool>& tools) {
  if (tools.size() > kMaxTools)
    return ParamError(kInvalid, "tools", tools.size(), " entries, limit ", kMaxTools);
  size_t bytes = 0;
  std::set<std::string_view> names;
  for (size_t i = 0; i < tools.size(); ++i) {
    const Tool& tool = tools[i];
    const std::string path = Concat("tools[", i, "].function.");
    bytes += tool.name.size() + tool.description.size() + tool.parameters.size();
    if (bytes > kMaxToolsBytes)
      return ParamError(kInvalid, "tools", "more than ", kMaxToolsBytes, " bytes together");
    RETURN_IF_ERROR(CheckName(tool.name, path + "name"));
    if (!names.insert(tool.name).second) return ParamError(kInvalid, path + "name", "is another tool's name");
    if (!tool.parameters.empty())
      RETURN_IF_ERROR(CheckObject(tool.parameters, kMaxToolsBytes, path + "parameters"));
  }
  return {};
}

Status CheckToolCalls(const ChatMessage& message, const std::string& path) {
  const bool answers_call = message.role == "tool";
  const std::string& id = message.tool_call_id;
  if (answers_call != !id.empty() || id.size() > kMaxToolCallIdBytes) {
    return ParamError(kInvalid, path + ".tool_call_id",
                      answers_call ? Concat("must be 1 to ", kMaxToolCallIdBytes, " bytes")
                                   : "is a field of messages whose role is tool");
  }
  const auto& calls = message.tool_calls;
  if (!calls.empty() && message.role != "assistant")
    return ParamError(kInvalid, path + ".tool_calls", "is a field of an assistant's messages");
  if (calls.size() > kMaxTools)
    return ParamError(kInvalid, path + ".tool_calls", calls.size(), " entries, limit ", kMaxTools);
  for (size_t i = 0; i < calls.size(); ++i) {
    const std::string call_path = Concat(path, ".tool_calls[", i, "].");
    if (calls[i].id.empty() || calls[i].id.size() > kMaxToolCallIdBytes)
      return ParamError(kInvalid, call_path + "id", "must be 1 to ", kMaxToolCallIdBytes, " bytes");
    RETURN_IF_ERROR(CheckName(calls[i].name, call_path + "function.name"));
    RETURN_IF_ERROR(CheckObject(calls[i].arguments, JsonLimits{}.bytes, call_path + "function.arguments"));
  }
  return {};
}

}  // namespace terrace
