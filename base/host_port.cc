#include "base/host_port.h"

#include <arpa/inet.h>

#include <charconv>

namespace terrace {

std::string HostPort::ToString() const {
  const bool is_ipv6 = host.find(':') != std::string::npos;
  return is_ipv6 ? Concat("[", host, "]:", port) : Concat(host, ":", port);
}

bool HostPort::is_loopback() const {
  in_addr v4 = {};
  in6_addr v6 = {};
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  if (inet_pton(AF_INET6, host.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
  return host == "localhost";
}

StatusOr<HostPort> ParseHostPort(std::string_view text) {
  const size_t colon = text.rfind(':');
  std::string_view host = text.substr(0, colon);
  const std::string_view port = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  const bool has_brackets = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (has_brackets) host = host.substr(1, host.size() - 2);
  HostPort parsed = {.host = std::string(host)};
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), parsed.port);
  if (host.empty() || host.find_first_of("[]/ ") != std::string_view::npos || error != std::errc() ||
      end != port.data() + port.size() || (host.find(':') != std::string_view::npos) != has_brackets) {
    return InvalidArgument("\"", text, "\" is not host:port");
  }
  return parsed;
}

}  // namespace terrace
