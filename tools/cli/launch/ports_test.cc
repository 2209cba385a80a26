#include "tools/cli/launch/ports.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/exit_code.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

// A socket that listens on a free loopback port while it lives.
class Listener {
 public:
  Listener() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    CHECK(bind(fd_, reinterpret_cast<sockaddr*>(&address), size) == 0 && listen(fd_, 1) == 0);
    CHECK(getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    port_ = ntohs(address.sin_port);
  }
  ~Listener() { close(fd_); }
  std::string address() const { return Concat("127.0.0.1:", port_); }
  uint16_t port() const { return port_; }

 private:
  const int fd_;
  uint16_t port_ = 0;
};

TEST(CheckPorts, NamesTheTakenPortItsKeyAndWhatToDo) {
  const Listener taken;
  const Status status = CheckPorts({{taken.address(), "router.listen.http"}});
  EXPECT_EQ(ExitCodeFor(status), kExitUnavailable);
  const std::string message = Message(status);
  EXPECT_NE(message.find(std::to_string(taken.port())), std::string::npos) << message;
  EXPECT_NE(message.find("router.listen.http"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(CheckPorts, AcceptsAPortThatWasLetGo) {
  std::string address;
  {
    const Listener listener;
    address = listener.address();
  }
  EXPECT_EQ(CheckPorts({{address, "router.listen.http"}}), Status());
}

TEST(CheckPorts, RefusesAddressesThatCannotWork) {
  const std::vector<std::vector<PortUse>> cases = {
      {{"127.0.0.1", "a"}},
      {{"127.0.0.1:", "a"}},
      {{":8080", "a"}},
      {{"127.0.0.1:70000", "a"}},
      {{"::1:80", "a"}},
      {{"127.0.0.1:8080x", "a"}},
      {{"127.0.0.1:0", "a"}},  // nobody would know the port
      {{"127.0.0.1:1", "a"}, {"127.0.0.1:1", "b"}},
  };
  for (const auto& uses : cases) {
    const Status status = CheckPorts(uses);
    EXPECT_EQ(ExitCodeFor(status), kExitConfig) << uses[0].address << ": " << status;
  }
}

TEST(ClientAddress, TurnsWildcardsIntoLoopback) {
  EXPECT_EQ(ClientAddress("0.0.0.0:80"), "127.0.0.1:80");
  EXPECT_EQ(ClientAddress("[::]:80"), "[::1]:80");
  EXPECT_EQ(ClientAddress("10.0.0.1:80"), "10.0.0.1:80");
}

}  // namespace
}  // namespace terrace
