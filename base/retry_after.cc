#include "base/retry_after.h"

#include <cstdlib>
#include <string>

#include "absl/strings/cord.h"

namespace terrace {
namespace {
constexpr char kRetryAfterUrl[] = "terrace.dev/retry-after";
}

Status WithRetryAfter(Status status, double seconds) {
  if (!status.ok()) status.SetPayload(kRetryAfterUrl, absl::Cord(std::to_string(seconds)));
  return status;
}

std::optional<double> RetryAfter(const Status& status) {
  const auto payload = status.GetPayload(kRetryAfterUrl);
  if (!payload.has_value()) return {};
  return std::strtod(std::string(*payload).c_str(), nullptr);
}

}  // namespace terrace
