// Typed access to the members of a client's JSON object. Errors are INVALID_ARGUMENT with reason and the
// parameter's path. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "router/request/param.h"
#include "text/tokenizer.h"

namespace terrace {

// The body of a request: one JSON object within the API's limits. Reasons of ParseJson.
StatusOr<Json> ParseBody(std::string_view body);

// Borrows the object. Absent and null are the same. `path` goes in front of parameter names: "messages[1].".
class Fields {
 public:
  explicit Fields(const Json& object, std::string path = "") : object_(object), path_(std::move(path)) {}

  const Json* Find(const char* name) const;  // null when absent
  std::string Param(const char* name) const { return path_ + name; }

  template <typename... Text>
  Status Error(const char* name, const Text&... text) const {
    return ParamError("invalid_value", Param(name), text...);
  }
  template <typename... Text>
  Status Unsupported(const char* name, const Text&... text) const {
    return ParamError("unsupported_parameter", Param(name), text...);
  }

  // Leave `out` as it is when the member is absent.
  Status Read(const char* name, std::string& out) const;
  Status Read(const char* name, bool& out) const;
  Status Read(const char* name, std::optional<double>& out) const;
  Status Read(const char* name, std::optional<int64_t>& out) const;

  // 5 and 5.0, but not "5" or 5.5.
  StatusOr<int64_t> Integer(const char* name, const Json& value) const;
  // A list of token ids; `what` the member must be, for the message.
  StatusOr<std::vector<TokenId>> Tokens(const char* name, const Json& value, std::string_view what) const;

  // UNSUPPORTED for the first of `names` that is there and not what is as good as absent: what `neutral` has
  // for it, else false.
  template <size_t count>
  Status RefuseSet(const char* const (&names)[count], const std::map<std::string, Json>& neutral) const {
    for (const char* name : names) {
      const Json* value = Find(name);
      if (value == nullptr) continue;
      const auto found = neutral.find(name);
      if (*value != (found == neutral.end() ? Json(false) : found->second))
        return Unsupported(name, "is not supported");
    }
    return {};
  }

 private:
  const Json& object_;
  const std::string path_;
};

// A prompt has the special tokens that the model wants, and a chat those of its template: always.
Status CheckSpecialTokens(const Fields& request, bool is_chat);

}  // namespace terrace
