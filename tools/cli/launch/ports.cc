#include "tools/cli/launch/ports.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <map>

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
    status = Unavailable(errno == EADDRINUSE ? "is taken by another program" : std::strerror(errno));
  }
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  return status;
}

}  // namespace

StatusOr<HostPort> ParseHostPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  HostPort parsed;
  if (colon != std::string::npos) {
    parsed.host = address.substr(0, colon);
    if (parsed.host.starts_with('[') && parsed.host.ends_with(']')) {
      parsed.host = parsed.host.substr(1, parsed.host.size() - 2);
    } else if (parsed.host.find(':') != std::string::npos) {
      parsed.host.clear();
    }
    const char* const end = address.data() + address.size();
    const auto [rest, error] = std::from_chars(address.data() + colon + 1, end, parsed.port);
    if (error == std::errc() && rest == end && !parsed.host.empty()) return parsed;
  }
  return FailedPrecondition("\"", address, "\" is not host:port (as in 127.0.0.1:8080)");
}

Status CheckPorts(const std::vector<PortUse>& uses) {
  std::map<std::string, std::string> key_of;  // by address
  for (const PortUse& use : uses) {
    const StatusOr<HostPort> address = ParseHostPort(use.address);
    if (!address.ok()) return Annotate(address.status(), use.key);
    if (address->port == 0) {
      return FailedPrecondition(use.key,
                                ": port 0 has no meaning here, the other processes must know the port");
    }
    if (const auto [other, is_new] = key_of.emplace(use.address, use.key); !is_new) {
      return FailedPrecondition(use.key, " and ", other->second, " are both ", use.address);
    }
  }
  for (const PortUse& use : uses) {
    const HostPort address = ParseHostPort(use.address).value();
    if (const Status status = TryListen(address); !status.ok()) {
      if (status.code() != StatusCode::kUnavailable) return Annotate(status, use.key);
      return Unavailable("port ", address.port, " on ", address.host, " (", use.key, ") ", Message(status),
                         ": stop that program, or choose another port with ", use.key);
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
