#include "router/api/openai_fields.h"

#include <cmath>

namespace terrace {
namespace {

constexpr JsonLimits kBodyLimits{.key_bytes = 1024};  // bytes: the HTTP server's limit comes first

}  // namespace

StatusOr<Json> ParseBody(std::string_view body) {
  StatusOr<Json> json = ParseJson(body, kBodyLimits);
  if (!json.ok()) return WithParam(json.status(), JsonPath(json.status()));
  if (!json->is_object())
    return WithReason(InvalidArgument("the body must be a JSON object"), "invalid_json");
  return json;
}

const Json* Fields::Find(const char* name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

Status Fields::Read(const char* name, std::string& out) const {
  const Json* value = Find(name);
  if (value == nullptr) return {};
  if (!value->is_string()) return Error(name, "must be a string");
  out = value->get<std::string>();
  return {};
}

Status Fields::Read(const char* name, bool& out) const {
  const Json* value = Find(name);
  if (value == nullptr) return {};
  if (!value->is_boolean()) return Error(name, "must be true or false");
  out = value->get<bool>();
  return {};
}

Status Fields::Read(const char* name, std::optional<double>& out) const {
  const Json* value = Find(name);
  if (value == nullptr) return {};
  if (!value->is_number()) return Error(name, "must be a number");
  out = value->get<double>();
  return {};
}

Status Fields::Read(const char* name, std::optional<int64_t>& out) const {
  const Json* value = Find(name);
  if (value == nullptr) return {};
  ASSIGN_OR_RETURN(out, Integer(name, *value));
  return {};
}

StatusOr<int64_t> Fields::Integer(const char* name, const Json& value) const {
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) return Error(name, "is too large");
  if (value.is_number_integer()) return value.get<int64_t>();
  const double real = value.is_number_float() ? value.get<double>() : 0.5;
  if (real != std::floor(real)) return Error(name, "must be an integer");
  if (std::abs(real) > 9e15) return Error(name, "is too large");  // not exact as a double
  return static_cast<int64_t>(real);
}

StatusOr<std::vector<TokenId>> Fields::Tokens(const char* name, const Json& value,
                                              std::string_view what) const {
  if (!value.is_array()) return Error(name, "must be ", what);
  std::vector<TokenId> tokens;
  tokens.reserve(value.size());
  for (const Json& entry : value) {
    const auto id = Integer(name, entry);
    if (!id.ok() || *id < 0 || *id > INT32_MAX) return Error(name, "must be ", what);
    tokens.push_back(static_cast<TokenId>(*id));
  }
  return tokens;
}

Status CheckSpecialTokens(const Fields& request, bool is_chat) {
  bool adds = !is_chat;
  RETURN_IF_ERROR(request.Read("add_special_tokens", adds));
  if (adds == !is_chat) return {};
  return request.Unsupported("add_special_tokens", "only ", is_chat ? "false" : "true", " is supported here");
}

}  // namespace terrace
