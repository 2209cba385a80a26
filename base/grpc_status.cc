#include "base/grpc_status.h"

#include <cmath>
#include <string>

#include "base/retry_after.h"

namespace terrace {

grpc::Status ToGrpcStatus(const Status& status) {
  // Abseil's codes are gRPC's.
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), Message(status));
}

void SetReasonTrailer(grpc::ServerContextBase& context, const Status& status) {
  if (const std::string reason = Reason(status); !reason.empty()) {
    context.AddTrailingMetadata(kReasonTrailer, reason);
  }
  if (const auto seconds = RetryAfter(status); seconds.has_value()) {
    context.AddTrailingMetadata(kRetryAfterTrailer, std::to_string(std::lround(std::ceil(*seconds))));
  }
}

Status FromGrpcStatus(const grpc::Status& status, const grpc::ClientContext& context) {
  if (status.ok()) return {};
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto reason = trailers.find(kReasonTrailer);
  return WithReason(
      status_internal::MakeStatus(static_cast<StatusCode>(status.error_code()), status.error_message()),
      reason == trailers.end() ? std::string_view()
                               : std::string_view(reason->second.data(), reason->second.size()));
}

}  // namespace terrace
