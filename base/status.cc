#include "base/status.h"

#include <cstdio>
#include <cstdlib>

#include "absl/strings/cord.h"

namespace terrace {
namespace {
constexpr char kReasonUrl[] = "terrace.dev/reason";
}

namespace status_internal {

void Append(std::string& out, double value) {
  char text[32];
  out.append(text, std::snprintf(text, sizeof(text), "%g", value));
}

void CheckFailed(const char* file, int line, const char* condition, std::string_view message) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s %.*s\n", file, line, condition,
               static_cast<int>(message.size()), message.data());
  std::abort();
}

Status MakeStatus(StatusCode code, std::string_view message) {
  return Status(code, absl::string_view(message.data(), message.size()));
}

}  // namespace status_internal

Status WithReason(Status status, std::string_view reason) {
  if (!status.ok() && !reason.empty())
    status.SetPayload(kReasonUrl, absl::Cord(absl::string_view(reason.data(), reason.size())));
  return status;
}

std::string Reason(const Status& status) {
  const auto payload = status.GetPayload(kReasonUrl);
  return payload.has_value() ? std::string(*payload) : std::string();
}

Status Annotate(const Status& status, std::string_view prefix) {
  if (status.ok()) return status;
  return WithReason(status_internal::MakeStatus(status.code(), Concat(prefix, ": ", Message(status))),
                    Reason(status));
}

}  // namespace terrace
