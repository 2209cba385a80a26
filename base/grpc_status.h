// Status across gRPC: the code and the message travel as gRPC's own, the reason in the trailer
// "terrace-reason", the time to try again in "retry-after", in whole seconds. Its own target
// (//base:grpc_status): base itself does not depend on gRPC. Thread-safe: values only.
#pragma once

#include "base/status.h"
#include "grpcpp/client_context.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"

namespace terrace {

inline constexpr char kReasonTrailer[] = "terrace-reason";
inline constexpr char kRetryAfterTrailer[] = "retry-after";

// Code and message.
grpc::Status ToGrpcStatus(const Status& status);

// Puts the reason of `status`, and when to try again, when it has them, into the call's trailers. Call it at
// most once per call, before it finishes.
void SetReasonTrailer(grpc::ServerContextBase& context, const Status& status);

// What a finished call said: the inverse of the two above. `context` is the call's, and the call is over.
Status FromGrpcStatus(const grpc::Status& status, const grpc::ClientContext& context);

}  // namespace terrace
