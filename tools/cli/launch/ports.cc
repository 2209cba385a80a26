#include "tools/cli/launch/ports.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>

#include "base/host_port.h"

namespace terrace {
namespace {

// OK when a socket can listen on `address` now; the socket is closed again.
Status TryListen(const HostPort& address) {
  addrinfo hints = {};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (error != 0) return FailedPrecondition("unknown host \"", address.host, "\": ", gai_strerror(error));

  Status status;
  const int fd = socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC, found->ai_protocol);
  const int yes = 1;
  if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) != 0 ||
      bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0) {
    status = Unavailable(errno == EADDRINUSE ? "is in use" : std::strerror(errno));
  }
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  return status;
}

}  // namespace

Status CheckAddresses(const std::vector<PortUse>& uses) {
  std::map<std::string, std::string> key_of;  // by address
  for (const PortUse& use : uses) {
    const StatusOr<HostPort> address = ParseHostPort(use.address);
    if (!address.ok()) return FailedPrecondition(use.key, ": ", Message(address.status()));
    if (address->port == 0) {
      return FailedPrecondition(use.key,
                                ": port 0 has no meaning here, the other processes must know the port");
    }
    if (const auto [other, is_new] = key_of.emplace(use.address, use.key); !is_new) {
      return FailedPrecondition(use.key, " and ", other->second, " are both ", use.address);
    }
  }
  return {};
}

Status CheckPorts(const std::vector<PortUse>& uses) {
  RETURN_IF_ERROR(CheckAddresses(uses));
  for (const PortUse& use : uses) {
    const HostPort address = ParseHostPort(use.address).value();
    if (const Status status = TryListen(address); !status.ok()) {
      if (status.code() != StatusCode::kUnavailable) return Annotate(status, use.key);
      return Unavailable("port ", address.port, " on ", address.host, " (", use.key, ") ", Message(status),
                         ": end what uses it, or choose another port with ", use.key);
    }
  }
  return Status();
}

std::string ClientAddress(const std::string& address) {
  const StatusOr<HostPort> parsed = ParseHostPort(address);
  if (parsed.ok() && parsed->host == "0.0.0.0") return Concat("127.0.0.1:", parsed->port);
  if (parsed.ok() && parsed->host == "::") return Concat("[::1]:", parsed->port);
  return address;
}

}  // namespace terrace
