#include "router/request/param.h"

#include "absl/strings/cord.h"

namespace terrace {
namespace {
constexpr char kParamUrl[] = "terrace.dev/param";
}

Status WithParam(Status status, std::string_view param) {
  if (!status.ok() && !param.empty()) {
    status.SetPayload(kParamUrl, absl::Cord(absl::string_view(param.data(), param.size())));
  }
  return status;
}

std::string Param(const Status& status) {
  const auto payload = status.GetPayload(kParamUrl);
  return payload.has_value() ? std::string(*payload) : std::string();
}

}  // namespace terrace
