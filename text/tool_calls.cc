#include "text/tool_calls.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/json.h"

namespace terrace {
namespace {

constexpr size_t kMaxDepth = 64;
constexpr std::string_view kBlanks = " \t\r\n";
constexpr std::string_view kOutsideStrings = " \t\r\n{}[]:,\"0123456789+-.eEtrufalsn";  // in JSON

bool IsBlank(char c) { return kBlanks.find(c) != std::string_view::npos; }

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(kBlanks);
  return begin == std::string_view::npos ? ""
                                         : text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

// The parts of a JSON object or array between its commas, without its brackets. `json` is valid.
std::vector<std::string_view> Parts(std::string_view json) {
  std::vector<std::string_view> parts;
  const std::string_view inner = Trim(json.substr(1, json.size() - 2));
  size_t depth = 0, begin = 0;
  bool in_string = false;
  for (size_t i = 0; i < inner.size(); ++i) {
    const char c = inner[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      --depth;
    } else if (c == ',' && depth == 0) {
      parts.push_back(Trim(inner.substr(begin, i - begin)));
      begin = i + 1;
    }
  }
  if (!inner.empty()) parts.push_back(Trim(inner.substr(begin)));
  return parts;
}

// The text of a member of a JSON object, as it was written; "" when absent. `object` is valid, and `name` is
// written without escapes.
std::string_view Member(std::string_view object, std::string_view name) {
  for (const std::string_view part : Parts(object)) {
    if (part.size() < name.size() + 2 || part.substr(1, name.size()) != name || part[name.size() + 1] != '"')
      continue;
    const std::string_view rest = Trim(part.substr(name.size() + 2));
    return Trim(rest.substr(1));  // behind the colon
  }
  return "";
}

// `value` is `text`, parsed.
std::optional<ToolCall> ReadCall(const Json& value, std::string_view text,
                                 const std::vector<std::string>& names) {
  if (!value.is_object()) return std::nullopt;
  const Json name = value.value("name", Json());
  if (!name.is_string() || !std::ranges::binary_search(names, name.get_ref<const std::string&>()))
    return std::nullopt;
  ToolCall call{.name = name.get<std::string>(), .arguments = "{}"};
  for (const char* key : {"arguments", "parameters"}) {
    const auto found = value.find(key);
    if (found == value.end()) continue;
    if (!found->is_object()) return std::nullopt;
    const std::string_view written = Member(text, key);
    if (written.empty()) return std::nullopt;  // a key with escapes
    call.arguments = written;
    break;
  }
  return call;
}

}  // namespace

ToolCallFormat DetectToolCallFormat(std::string_view template_source) {
  const auto has = [&](std::string_view text) {
    return template_source.find(text) != std::string_view::npos;
  };
  if (has("<function=")) return ToolCallFormat::kNone;  // arguments as XML
  if (has("<tool_call>")) return ToolCallFormat::kHermes;
  if (has("[TOOL_CALLS]")) return ToolCallFormat::kMistral;
  if (has("<|python_tag|>") || has("\"parameters\": ")) return ToolCallFormat::kLlama;
  return ToolCallFormat::kNone;
}

bool IsToolCallMark(ToolCallFormat format, std::string_view text) {
  switch (format) {
    case ToolCallFormat::kNone:
      return false;
    case ToolCallFormat::kHermes:
      return text == "<tool_call>" || text == "</tool_call>";
    case ToolCallFormat::kMistral:
      return text == "[TOOL_CALLS]";
    case ToolCallFormat::kLlama:
      return text == "<|python_tag|>";
  }
  return false;
}

ToolCallParser::Syntax ToolCallParser::SyntaxOf(ToolCallFormat format) {
  switch (format) {
    case ToolCallFormat::kMistral:
      return {.begin = "[TOOL_CALLS]", .end = "", .open = '['};
    case ToolCallFormat::kLlama:
      return {.begin = "<|python_tag|>", .end = "", .is_bare = true};
    default:
      return {.begin = "<tool_call>", .end = "</tool_call>"};
  }
}

ToolCallParser::ToolCallParser(ToolCallFormat format, const std::vector<Tool>& tools, size_t max_calls)
    : syntax_(SyntaxOf(format)), max_calls_(max_calls) {
  for (const Tool& tool : tools) names_.push_back(tool.name);
  std::ranges::sort(names_);
  if (syntax_.is_bare) state_ = State::kAfter;
}

ToolCallParser::Piece ToolCallParser::Push(std::string_view text) {
  for (const char next : text) {
    if (is_full()) break;
    Step(next);
  }
  return std::exchange(piece_, {});
}

ToolCallParser::Piece ToolCallParser::Finish() {
  const bool is_beside_call = follows_call_ && held_.find_first_not_of(" \t\r\n;") == std::string::npos;
  if (is_full() || is_beside_call) held_.clear();
  ToContent();
  return std::exchange(piece_, {});
}

void ToolCallParser::Step(char next) {
  switch (state_) {
    case State::kContent:
      return StepInContent(next);
    case State::kMarked:
      if (IsBlank(next)) return held_.push_back(next);
      if (next == syntax_.open) return BeginJson(next);
      ToContent();
      return StepInContent(next);
    case State::kJson:
      return StepInJson(next);
    case State::kAfter:
      return StepAfter(next);
  }
}

void ToolCallParser::StepInContent(char next) {
  if (matched_ > 0 && next != syntax_.begin[matched_]) ToContent();
  if (next == syntax_.begin[matched_]) {
    held_.push_back(next);
    if (++matched_ == syntax_.begin.size()) state_ = State::kMarked;
  } else if (IsBlank(next)) {
    held_.push_back(next);
  } else {
    ToContent();
    piece_.content.push_back(next);
    follows_call_ = false;
  }
}

void ToolCallParser::BeginJson(char next) {
  state_ = State::kJson;
  json_begin_ = held_.size();
  held_.push_back(next);
  depth_ = 1;
  in_string_ = is_escaped_ = false;
}

// Follows strings and brackets; the rest is read when the brackets are closed.
void ToolCallParser::StepInJson(char next) {
  const bool opens = !in_string_ && (next == '{' || next == '[');
  const bool fits = in_string_ ? static_cast<unsigned char>(next) >= 0x20
                               : kOutsideStrings.find(next) != std::string_view::npos;
  if (!fits || (opens && depth_ == kMaxDepth)) return Reread(next);
  held_.push_back(next);
  if (in_string_) {
    in_string_ = is_escaped_ || next != '"';
    is_escaped_ = !is_escaped_ && next == '\\';
    return;
  }
  in_string_ = next == '"';
  if (opens) ++depth_;
  if ((next == '}' || next == ']') && --depth_ == 0) EndJson();
}

void ToolCallParser::EndJson() {
  if (!TakeCalls(std::string_view(held_).substr(json_begin_))) return ToContent();
  held_.clear();
  matched_ = 0;
  follows_call_ = true;
  state_ = State::kAfter;
}

void ToolCallParser::StepAfter(char next) {
  if (matched_ == 0 && IsBlank(next)) return held_.push_back(next);
  if (syntax_.is_bare && next == ';' && follows_call_) return held_.push_back(next);
  if (syntax_.is_bare && next == syntax_.open) return BeginJson(next);
  if (syntax_.end.empty() || next != syntax_.end[matched_]) return Reread(next);
  held_.push_back(next);
  if (++matched_ < syntax_.end.size()) return;
  held_.clear();
  matched_ = 0;
  state_ = State::kContent;
}

void ToolCallParser::ToContent() {
  if (!held_.empty()) follows_call_ = false;
  piece_.content += held_;
  held_.clear();
  matched_ = 0;
  state_ = State::kContent;
}

// In kJson what is held cannot be a call any more; in kAfter it may be the beginning of a mark.
void ToolCallParser::Reread(char next) {
  if (state_ == State::kJson) {
    ToContent();
  } else {
    state_ = State::kContent;
    matched_ = 0;
    for (const char held : std::exchange(held_, {})) StepInContent(held);
  }
  StepInContent(next);
}

// False when `json` is no call, or a list with something else in it.
bool ToolCallParser::TakeCalls(std::string_view json) {
  const auto value = ParseJson(json, {.bytes = json.size(), .depth = kMaxDepth, .nodes = json.size()});
  if (!value.ok()) return false;
  std::vector<ToolCall> calls;
  const bool is_list = value->is_array();
  const std::vector<std::string_view> texts = is_list ? Parts(json) : std::vector{json};
  if (texts.empty()) return false;
  for (size_t i = 0; i < texts.size(); ++i) {
    auto call = ReadCall(is_list ? (*value)[i] : *value, texts[i], names_);
    if (!call.has_value()) return false;
    calls.push_back(*std::move(call));
  }
  for (ToolCall& call : calls) {
    if (is_full()) break;
    piece_.calls.push_back(std::move(call));
    ++calls_;
  }
  return true;
}

}  // namespace terrace
