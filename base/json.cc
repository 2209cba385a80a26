#include "base/json.h"

#include <set>
#include <string>
#include <vector>

namespace terrace {
namespace {

// Watches the parser's events and remembers the first limit that was passed.
class LimitWatcher {
 public:
  explicit LimitWatcher(const JsonLimits& limits) : limits_(limits) {}

  bool Accept(int depth, Json::parse_event_t event, const Json& value) {
    if (!error_.ok()) return false;
    if (static_cast<size_t>(depth) > limits_.depth)
      return Fail("json_limit", Concat("nested deeper than ", limits_.depth));
    switch (event) {
      case Json::parse_event_t::object_start:
        keys_.emplace_back();
        break;
      case Json::parse_event_t::object_end:
        keys_.pop_back();
        break;
      case Json::parse_event_t::key:
        if (!keys_.back().insert(value.get_ref<const std::string&>()).second) {
          return Fail("duplicate_key",
                      Concat("key \"", value.get_ref<const std::string&>(), "\" occurs twice"));
        }
        [[fallthrough]];
      case Json::parse_event_t::value:
        if (++nodes_ > limits_.nodes)
          return Fail("json_limit", Concat("more than ", limits_.nodes, " values"));
        break;
      default:
        break;
    }
    return true;
  }

  const Status& error() const { return error_; }

 private:
  bool Fail(std::string_view reason, const std::string& message) {
    error_ = WithReason(InvalidArgument("JSON: ", message), reason);
    return false;
  }

  const JsonLimits limits_;
  std::vector<std::set<std::string>> keys_;  // of each open object
  size_t nodes_ = 0;
  Status error_;
};

}  // namespace

StatusOr<Json> ParseJson(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.bytes) {
    return WithReason(InvalidArgument("JSON: ", text.size(), " bytes, limit ", limits.bytes), "json_limit");
  }
  // A depth bomb is refused before the parser builds anything; strings are skipped, escapes and all.
  size_t depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > limits.depth) {
        return WithReason(InvalidArgument("JSON: nested deeper than ", limits.depth, " at byte ", i),
                          "json_limit");
      }
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  LimitWatcher watcher(limits);
  try {
    Json value = Json::parse(text, [&](int event_depth, Json::parse_event_t event, Json& parsed) {
      return watcher.Accept(event_depth, event, parsed);
    });
    RETURN_IF_ERROR(watcher.error());
    return value;
  } catch (const Json::parse_error& error) {
    if (!watcher.error().ok()) return watcher.error();
    return WithReason(InvalidArgument("JSON: syntax error at byte ", error.byte), "invalid_json");
  } catch (const Json::exception& error) {  // a number out of range
    return WithReason(InvalidArgument("JSON: ", error.what()), "invalid_json");
  }
}

std::string ToJsonText(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace terrace
