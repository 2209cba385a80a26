// The gRPC API: terrace.v1.Inference on gRPC's callback threads; nothing blocks. The dispatcher, the clock
// and the limit outlive the service, and the service its server.
#pragma once

#include <memory>

#include "grpcpp/impl/codegen/service_type.h"
#include "router/api/api_options.h"
#include "router/api/reset_limit.h"
#include "router/dispatch/dispatcher.h"

namespace terrace {

std::unique_ptr<grpc::Service> MakeInferenceService(Dispatcher& dispatcher, ApiOptionsSource options,
                                                    const Clock& clock, ResetLimit& resets);

}  // namespace terrace
