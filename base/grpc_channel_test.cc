// What gRPC makes of the settings for connections between routers and workers, on the sockets themselves.
#include "base/grpc_channel.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <chrono>
#include <string>
#include <vector>

#include "base/grpc_keepalive.h"
#include "gmock/gmock.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/grpcpp.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;

// Of this process's connections that have `port` at either end, in milliseconds.
std::vector<int> UserTimeouts(int port) {
  constexpr int kMostDescriptors = 1024;
  std::vector<int> out;
  for (int descriptor = 0; descriptor < kMostDescriptors; ++descriptor) {
    sockaddr_in6 own{}, peer{};  // its port is where that of sockaddr_in is
    socklen_t own_size = sizeof(own), peer_size = sizeof(peer);
    if (getsockname(descriptor, reinterpret_cast<sockaddr*>(&own), &own_size) != 0 ||
        getpeername(descriptor, reinterpret_cast<sockaddr*>(&peer), &peer_size) != 0) {
      continue;
    }
    if (own.sin6_family != AF_INET && own.sin6_family != AF_INET6) continue;
    if (ntohs(own.sin6_port) != port && ntohs(peer.sin6_port) != port) continue;
    int timeout = 0;
    socklen_t size = sizeof(timeout);
    EXPECT_EQ(getsockopt(descriptor, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, &size), 0);
    out.push_back(timeout);
  }
  return out;
}

TEST(PeerChannel, BytesThatNobodyAcknowledgesEndTheConnectionOnBothSides) {
  grpc::CallbackGenericService service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  SetKeepalive(builder);
  builder.RegisterCallbackGenericService(&service);
  const auto server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);
  const auto channel = MakePeerChannel("127.0.0.1:" + std::to_string(port), {});
  ASSERT_TRUE(channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(30)));
  EXPECT_THAT(UserTimeouts(port), ElementsAre(kKeepaliveTimeoutMillis, kKeepaliveTimeoutMillis));
  server->Shutdown(std::chrono::system_clock::now());
}

}  // namespace
}  // namespace terrace
