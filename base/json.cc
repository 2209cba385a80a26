#include "base/json.h"

#include <cstdio>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/cord.h"
#include "base/json_fast_path.h"

namespace terrace {
namespace {

constexpr char kPathUrl[] = "terrace.dev/json-path";
constexpr size_t kMaxPathBytes = 256;
constexpr size_t kMaxEchoedKeyBytes = 64;

Status Refused(std::string_view reason, const std::string& message) {
  return WithReason(InvalidArgument("JSON: ", message), reason);
}

// Watches the parser's events, knows where in the document it is and remembers the first limit that was
// passed.
class LimitWatcher {
 public:
  explicit LimitWatcher(const JsonLimits& limits) : limits_(limits) {}

  bool Accept(int depth, Json::parse_event_t event, const Json& value) {
    if (!error_.ok()) return false;
    if (static_cast<size_t>(depth) > limits_.depth)
      return Fail("json_limit", Concat("nested deeper than ", limits_.depth));
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        open_.push_back({.is_object = event == Json::parse_event_t::object_start});
        return CountNode();
      case Json::parse_event_t::object_end:
      case Json::parse_event_t::array_end:
        open_.pop_back();
        EndValue();
        return true;
      case Json::parse_event_t::key:
        return AcceptKey(value.get_ref<const std::string&>()) && CountNode();
      case Json::parse_event_t::value:
        EndValue();
        return CountNode();
    }
    return true;
  }

  const Status& error() const { return error_; }

  // `error` is of the member or element that is being read.
  Status WithJsonPath(Status error) const {
    error.SetPayload(kPathUrl, absl::Cord(Path()));
    return error;
  }

 private:
  struct Container {
    bool is_object = false;
    std::string key = {};             // the last one of an object
    std::set<std::string> keys = {};  // of an object, so far
    size_t index = 0;                 // of the next element of an array
  };

  std::string Path() const {
    std::string path;
    for (const Container& container : open_) {
      if (container.is_object) {
        path += (path.empty() ? "" : ".") + container.key;
      } else {
        path += Concat("[", container.index, "]");
      }
      if (path.size() > kMaxPathBytes) return "";
    }
    return path;
  }

  bool AcceptKey(const std::string& key) {
    if (key.size() > limits_.key_bytes)
      return Fail("json_limit", Concat("a key of ", key.size(), " bytes, limit ", limits_.key_bytes));
    open_.back().key = key;
    if (open_.back().keys.insert(key).second) return true;
    const bool is_short = key.size() <= kMaxEchoedKeyBytes;
    Fail("duplicate_key", is_short ? Concat("key \"", key, "\" occurs twice") : "a key occurs twice");
    error_ = WithJsonPath(error_);
    return false;
  }

  bool CountNode() {
    return ++nodes_ <= limits_.nodes || Fail("json_limit", Concat("more than ", limits_.nodes, " values"));
  }

  void EndValue() {
    if (!open_.empty()) ++open_.back().index;
  }

  bool Fail(std::string_view reason, const std::string& message) {
    error_ = Refused(reason, message);
    return false;
  }

  const JsonLimits limits_;
  std::vector<Container> open_;
  size_t nodes_ = 0;
  Status error_;
};

// The library tells kinds of syntax errors apart by their text alone, which ends with a part of the input.
std::string_view ReasonOf(const Json::parse_error& error) {
  const std::string_view text = error.what(), what = text.substr(0, text.find("; last read"));
  for (const char* unicode : {"ill-formed UTF-8", "surrogate", "U+0000"}) {
    if (what.find(unicode) != std::string_view::npos) return "invalid_unicode";
  }
  return "invalid_json";
}

// What the parser must not see: deep nesting, which is refused before anything is built, and a byte order
// mark or NUL outside strings, which it would take for nothing and for the end. Strings are skipped, escapes
// and all.
Status CheckOutsideStrings(std::string_view text, const JsonLimits& limits) {
  if (text.starts_with("\xEF\xBB\xBF")) return Refused("invalid_json", "it begins with a byte order mark");
  size_t depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '\0') {
      return Refused("invalid_json", Concat("syntax error at byte ", i + 1));
    } else if (c == '[' || c == '{') {
      if (++depth > limits.depth)
        return Refused("json_limit", Concat("nested deeper than ", limits.depth, " at byte ", i));
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return {};
}

// The closing quote of the string that begins at `begin` of a document in order.
size_t EndOfString(std::string_view text, size_t begin) {
  for (size_t end = text.find('"', begin + 1); end != std::string_view::npos; end = text.find('"', end + 1)) {
    size_t backslashes = 0;
    while (text[end - 1 - backslashes] == '\\') ++backslashes;
    if (backslashes % 2 == 0) return end;
  }
  return text.size();
}

std::string Dump(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

// Stands for itself in a string.
bool IsPlain(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte >= 0x20 && byte < 0x80 && c != '"' && c != '\\';
}

// Of an ASCII character that does not; as the library writes it.
void AppendEscape(char c, std::string& out) {
  constexpr std::string_view kCharacters = "\"\\\b\f\n\r\t", kKinds = "\"\\bfnrt";
  const size_t found = kCharacters.find(c);
  out += '\\';
  if (found != std::string_view::npos) {
    out += kKinds[found];
  } else {
    char code[16];
    std::snprintf(code, sizeof(code), "u%04x", static_cast<unsigned>(c));
    out += code;
  }
}

}  // namespace

StatusOr<Json> ParseJson(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.bytes) {
    return Refused("json_limit", Concat(text.size(), " bytes, limit ", limits.bytes));
  }
  if (auto value = ReadJsonFast(text, limits); value.has_value()) return *std::move(value);
  RETURN_IF_ERROR(CheckOutsideStrings(text, limits));
  LimitWatcher watcher(limits);
  try {
    Json value = Json::parse(text, [&](int event_depth, Json::parse_event_t event, Json& parsed) {
      return watcher.Accept(event_depth, event, parsed);
    });
    RETURN_IF_ERROR(watcher.error());
    return value;
  } catch (const Json::parse_error& error) {
    if (!watcher.error().ok()) return watcher.error();
    return Refused(ReasonOf(error), Concat("syntax error at byte ", error.byte));
  } catch (const Json::exception&) {
    if (!watcher.error().ok()) return watcher.error();
    return watcher.WithJsonPath(Refused("invalid_value", "a number is too large"));
  }
}

std::string JsonPath(const Status& error) {
  const auto path = error.GetPayload(kPathUrl);
  return path.has_value() ? std::string(*path) : std::string();
}

std::string_view FindJsonMember(std::string_view object, std::string_view name) {
  constexpr size_t kNone = std::string_view::npos;
  size_t depth = 0, value = kNone;  // where the member's value begins
  for (size_t i = 0; i < object.size(); ++i) {
    const char c = object[i];
    if (c == '"') {
      const size_t end = EndOfString(object, i);
      const bool has_name = depth == 1 && value == kNone && object.substr(i + 1, end - i - 1) == name;
      const size_t next = has_name ? object.find_first_not_of(" \t\r\n", end + 1) : kNone;
      const bool is_it = next != kNone && object[next] == ':';
      if (is_it) value = next + 1;
      i = is_it ? next : end;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      --depth;
      if (depth == 0 && value != kNone) return object.substr(value, i - value);
    } else if (c == ',' && depth == 1 && value != kNone) {
      return object.substr(value, i - value);
    }
  }
  return {};
}

StatusOr<std::string> StringMember(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) return InvalidArgument("\"", key, "\" is not a string");
  return found->get<std::string>();
}

std::string ToJsonText(const Json& value) {
  std::string out;
  AppendJsonText(value, out);
  return out;
}

// The kinds that are many in logs and streams; the library's serializer takes memory several times for each.
void AppendJsonText(const Json& value, std::string& out) {
  switch (value.type()) {
    case Json::value_t::null:
      out += "null";
      return;
    case Json::value_t::boolean:
      out += value.get<bool>() ? "true" : "false";
      return;
    case Json::value_t::number_integer:
      out += std::to_string(value.get<int64_t>());
      return;
    case Json::value_t::number_unsigned:
      out += std::to_string(value.get<uint64_t>());
      return;
    case Json::value_t::string:
      return AppendJsonString(value.get_ref<const std::string&>(), out);
    default:
      out += Dump(value);
  }
}

void AppendJsonString(std::string_view text, std::string& out) {
  const size_t before = out.size();
  out += '"';
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    while (i < text.size() && IsPlain(text[i])) ++i;
    out.append(text, begin, i - begin);
    if (i == text.size()) break;
    if (static_cast<unsigned char>(text[i]) >= 0x80) {  // is it UTF-8?
      out.resize(before);
      out += Dump(text);
      return;
    }
    AppendEscape(text[i++], out);
  }
  out += '"';
}

}  // namespace terrace
