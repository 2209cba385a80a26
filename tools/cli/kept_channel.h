// The gRPC channels of this process's clients.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "grpcpp/channel.h"

namespace terrace {

// A channel to host:port that lives as long as the process: gRPC 1.51 aborts ("assertion failed: prior > 0")
// when the last channel with callback calls is dropped on one of its own threads, as the end of a stream may
// do. One or two a process; called by the main thread only.
std::shared_ptr<grpc::Channel> MakeKeptChannel(const std::string& address);

// A call to a `kind` ("router", "worker") at `address` ended with `status`: why there is none.
Status NoneAnswers(const char* kind, const std::string& address, const Status& status);

}  // namespace terrace
