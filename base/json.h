// JSON from the outside world, parsed strictly and within limits. Thread-safe: values only.
#pragma once

#include <string_view>

#include "base/status.h"
#include "nlohmann/json.hpp"

namespace terrace {

using Json = nlohmann::json;

struct JsonLimits {
  size_t bytes = size_t{8} << 20;
  size_t depth = 64;
  size_t nodes = 1'000'000;  // values and keys together
};

// Errors are INVALID_ARGUMENT with a reason: invalid_json (with the byte offset), json_limit (size, depth or
// nodes past `limits`) or duplicate_key. Callers who read files turn the code into DATA_LOSS.
StatusOr<Json> ParseJson(std::string_view text, const JsonLimits& limits = {});

// Compact text of `value`; invalid UTF-8 in strings becomes U+FFFD, never an exception.
std::string ToJsonText(const Json& value);

}  // namespace terrace
