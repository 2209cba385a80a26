// A channel to another process of the cluster: a connection of its own, made on first use, keepalive as in
// grpc_keepalive.h. Who uses it decides when to try again: gRPC's own retries are off, and its pauses between
// two connections are short. Its own target, like grpc_status. Thread-safe: values only.
#pragma once

#include <memory>
#include <string>

#include "grpcpp/channel.h"
#include "grpcpp/security/credentials.h"

namespace terrace {

struct PeerChannelOptions {
  std::shared_ptr<grpc::ChannelCredentials> credentials = {};  // null: plain text
  std::string server_name = {};      // that the peer's certificate is for; "": the host of its address
  int max_receive_bytes = 16 << 20;  // of a message
};

std::shared_ptr<grpc::Channel> MakePeerChannel(const std::string& address, const PeerChannelOptions& options);

}  // namespace terrace
