// A server without free descriptors. By itself, and not under sanitizers, which need some of their own.
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <vector>

#include "base/host_port.h"
#include "base/http_server.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

class Client {
 public:
  Client() : socket_(socket(AF_INET, SOCK_STREAM, 0)) {}
  ~Client() { close(socket_); }

  bool Connect(const std::string& server) const {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(ParseHostPort(server)->port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  // Whether the server answers a request: "ok" is all it says.
  bool Ask() const {
    constexpr char kRequest[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    if (send(socket_, kRequest, sizeof kRequest - 1, MSG_NOSIGNAL) < 0) return false;
    std::string answer;
    char buffer[1024];
    while (!answer.ends_with("ok")) {
      const ssize_t got = recv(socket_, buffer, sizeof buffer, 0);
      if (got <= 0) return false;
      answer.append(buffer, static_cast<size_t>(got));
    }
    return true;
  }
  int descriptor() const { return socket_; }

 private:
  const int socket_;
};

TEST(HttpServer, WithoutDescriptorsItPausesAndGoesOn) {
  const auto server = HttpServer::Start(
      {}, [](const HttpRequest&, const auto& responder) { responder->Send(200, "ok", "text/plain"); });
  ASSERT_TRUE(server.ok()) << server.status();
  Client first;
  ASSERT_TRUE(first.Connect((*server)->address()) && first.Ask());

  Client second, third;  // who connect when there are no more descriptors, and later
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit few = before;
  few.rlim_cur = static_cast<rlim_t>(third.descriptor()) + 1;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  std::vector<int> taken;  // what is free below the limit
  for (int next; (next = dup(first.descriptor())) >= 0;) taken.push_back(next);
  EXPECT_TRUE(second.Connect((*server)->address())) << "the backlog takes it";
  EXPECT_TRUE(first.Ask()) << "those who are there go on";
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  for (const int each : taken) close(each);
  EXPECT_TRUE(third.Connect((*server)->address()) && third.Ask());
  EXPECT_TRUE(second.Ask());
}

}  // namespace
}  // namespace terrace
