// How long a peer may be gone without a word before its connection is closed: on the idle ones, HTTP/2 pings
// find out; where bytes are on their way, the kernel does, as gRPC sets TCP_USER_TIMEOUT to the timeout of
// the pings (gRFC A18, on Linux, also for what a server accepts). Its own target, like grpc_status.
#pragma once

#include "grpcpp/server_builder.h"
#include "grpcpp/support/channel_arguments.h"

namespace terrace {

inline constexpr int kKeepaliveMillis = 10'000, kKeepaliveTimeoutMillis = 5'000;
// Clients that ping more often are sent away. Less than the above: clocks and networks are not exact.
inline constexpr int kLeastPingMillis = 5'000;

inline void SetKeepalive(grpc::ChannelArguments& channel) {
  channel.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMillis);
  channel.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMillis);
  channel.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  channel.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // no limit
}

// A client of gRPC's synchronous C++ API answers pings only while it reads: servers of such clients are more
// patient.
inline void SetKeepalive(grpc::ServerBuilder& server, int timeout_millis = kKeepaliveTimeoutMillis) {
  server.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMillis);
  server.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, timeout_millis);
  server.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  server.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  server.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kLeastPingMillis);
}

}  // namespace terrace
