// The gRPC channels of this process's clients.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "base/tls.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/security/credentials.h"

namespace terrace {

// How a command connects to a server, as its flags say. Without `tls.ca` in plain text.
struct ServerAccess {
  TlsFiles tls = {};
  std::string server_name = {};   // that the server's certificate is for; "": the host of its address
  std::string api_key_file = {};  // of a router; "": it asks for no key
};

struct ChannelSecurity {
  std::shared_ptr<grpc::ChannelCredentials> credentials = {};  // null: plain text
  std::string server_name = {};                                // as in ServerAccess
  std::string authorization = {};                              // "Bearer <key>"; "": none
};
// Reads the files. Errors of LoadTls and ReadApiKey.
StatusOr<ChannelSecurity> OpenSecurity(const ServerAccess& flags);
// Shows a router the key, if there is one.
void AddAuthorization(const std::string& authorization, grpc::ClientContext& context);

// A channel to host:port that lives as long as the process: gRPC 1.51 aborts ("assertion failed: prior > 0")
// when the last channel with callback calls is dropped on one of its own threads, as the end of a stream may
// do. One or two a process; called by the main thread only.
std::shared_ptr<grpc::Channel> MakeKeptChannel(const std::string& address,
                                               const ChannelSecurity& security = {});

// A call to a `kind` ("router", "worker") at `address` ended with `status`: why there is none.
Status NoneAnswers(const char* kind, const std::string& address, const Status& status);

}  // namespace terrace
