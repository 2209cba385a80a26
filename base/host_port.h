// "host:port" as people write it: "127.0.0.1:8080", "localhost:0", "[::1]:8080". Thread-safe: values only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace terrace {

struct HostPort {
  std::string host;  // without brackets
  uint16_t port = 0;
  std::string ToString() const;  // brackets come back around an IPv6 address
  // Whether only this machine can reach it: 127.0.0.0/8, ::1 or the name localhost. Nothing is looked up.
  bool is_loopback() const;
};

StatusOr<HostPort> ParseHostPort(std::string_view text);

}  // namespace terrace
