#include "router/request/param.h"

#include <algorithm>

#include "absl/strings/cord.h"

namespace terrace {
namespace {
constexpr char kParamUrl[] = "terrace.dev/param";
constexpr size_t kMaxEchoedBytes = 64;

bool MayBeEchoed(std::string_view name) {
  const auto is_plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("._/:-").find(c) != std::string_view::npos;
  };
  return !name.empty() && name.size() <= kMaxEchoedBytes && std::all_of(name.begin(), name.end(), is_plain);
}

}  // namespace

Status WithParam(Status status, std::string_view param) {
  if (!status.ok() && !param.empty()) {
    status.SetPayload(kParamUrl, absl::Cord(absl::string_view(param.data(), param.size())));
  }
  return status;
}

Status ModelNotFound(std::string_view name) {
  const Status error = MayBeEchoed(name) ? NotFound("model: no tier, policy or alias is named \"", name, "\"")
                                         : NotFound("model: no tier, policy or alias of that name");
  return WithParam(WithReason(error, "model_not_found"), "model");
}

Status ModelNotAllowed(std::string_view name) {
  const Status error(StatusCode::kPermissionDenied, Concat("model: this key may not use \"", name, "\""));
  return WithParam(WithReason(error, "model_not_allowed"), "model");
}

std::string Param(const Status& status) {
  const auto payload = status.GetPayload(kParamUrl);
  return payload.has_value() ? std::string(*payload) : std::string();
}

}  // namespace terrace
