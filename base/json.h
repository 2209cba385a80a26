// JSON from the outside world, parsed strictly and within limits. Thread-safe: values only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/json_fwd.h"
#include "base/status.h"
#include "nlohmann/json.hpp"

namespace terrace {

struct JsonLimits {
  size_t bytes = size_t{8} << 20;
  size_t depth = 64;
  size_t nodes = 1'000'000;  // values and keys together
  size_t key_bytes = SIZE_MAX;
};

// Errors are INVALID_ARGUMENT with a reason: invalid_json (with the byte offset), invalid_unicode (what is no
// UTF-8, half a surrogate pair or a bare NUL inside a string), json_limit (size, depth, nodes or a key past
// `limits`), duplicate_key or invalid_value (a number that no double can hold). Callers who read files turn
// the code into DATA_LOSS.
StatusOr<Json> ParseJson(std::string_view text, const JsonLimits& limits = {});

// Where a duplicate_key or invalid_value of ParseJson is: "messages[1].role". "" for other errors, and for a
// path of more than 256 bytes.
std::string JsonPath(const Status& error);

// The text of the member `name` of `object`, which is one that ParseJson took; "" when there is none, or when
// its name is written with escapes.
std::string_view FindJsonMember(std::string_view object, std::string_view name);

// The string `key` of an object. INVALID_ARGUMENT where it is absent or something else.
StatusOr<std::string> StringMember(const Json& object, const char* key);

// null when there is no value.
template <typename T>
Json OrNull(const std::optional<T>& value) {
  return value.has_value() ? Json(*value) : Json();
}

// Compact text of `value`; invalid UTF-8 in strings becomes U+FFFD, never an exception.
std::string ToJsonText(const Json& value);
// The same, behind what is in `out`.
void AppendJsonText(const Json& value, std::string& out);
// The same of a string, of which no value has to be made.
void AppendJsonString(std::string_view text, std::string& out);

}  // namespace terrace
