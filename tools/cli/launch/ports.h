// The listening addresses of a cluster that is about to start: checked before any process is.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace terrace {

// Of the workers of a cluster that are given none, on 127.0.0.1, one after the other: gRPC, and the ops
// listener.
inline constexpr uint32_t kFirstWorkerPort = 8101, kFirstWorkerOpsPort = 9091;

struct PortUse {
  std::string address;
  std::string key;  // of the configuration: "router.listen.http"
};

// FAILED_PRECONDITION for a malformed address, port 0, or one used twice.
Status CheckAddresses(const std::vector<PortUse>& uses);
// OK when every address can be listened on now. Errors of CheckAddresses; UNAVAILABLE (exit code 69), naming
// port, key and what to do, for one that is taken.
Status CheckPorts(const std::vector<PortUse>& uses);

// Where a client on this machine reaches a server that listens on `address`: wildcard hosts become loopback.
std::string ClientAddress(const std::string& address);

}  // namespace terrace
