// SRV records of DNS (RFC 2782), by glibc's resolver: where a service runs, host and port. Thread-safe.
#pragma once

#include <netinet/in.h>

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/host_port.h"
#include "base/status.h"

namespace terrace {

// Every host and port of a name's records; none when it has none. Priorities and weights are not looked at:
// all workers of a tier are used. NOT_FOUND: there is no such name. May block for some seconds.
using SrvLookup = std::function<StatusOr<std::vector<HostPort>>(const std::string& name)>;
// As /etc/resolv.conf has it now, with its search list.
StatusOr<std::vector<HostPort>> SystemSrvLookup(const std::string& name);
// Asks the first three of `servers` instead of those of /etc/resolv.conf, unless there are none.
StatusOr<std::vector<HostPort>> SrvLookupAt(std::span<const sockaddr_in> servers, const std::string& name);

// The records in a DNS answer. DATA_LOSS when it is malformed.
StatusOr<std::vector<HostPort>> ParseSrvAnswer(std::span<const unsigned char> message);

}  // namespace terrace
