// Which addresses a tier's workers have: listed ones, DNS names, SRV names and files here; a fake in
// cluster_test.cc.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/host_port.h"
#include "base/status.h"
#include "router/cluster/srv_lookup.h"

namespace terrace {

struct Discovered {
  std::vector<std::string> addresses = {};  // host:port of every worker, sorted, each once
  std::vector<Status> errors = {};          // of names and files whose addresses may be old
  size_t failures = 0;                      // look-ups of this time that failed
};

class Discovery {
 public:
  virtual ~Discovery() = default;
  // May block: called only by the cluster's discovery thread, every second or so.
  virtual Discovered Resolve() = 0;
};

// host:port of every address that a name has now. NOT_FOUND: there is no such name. May block.
using DnsLookup = std::function<StatusOr<std::vector<std::string>>(const HostPort& name)>;
StatusOr<std::vector<std::string>> SystemDnsLookup(const HostPort& name);

struct DiscoveryOptions {
  Duration dns_refresh = std::chrono::seconds(10);  // names are looked up no more often
  DnsLookup look_up = SystemDnsLookup;
  SrvLookup look_up_srv = SystemSrvLookup;
  const Clock& clock = RealClock();  // outlives the discovery
};

// Entries are
//   host:port             a worker
//   dns:///host:port      one at every address of the name
//   srv:///name           one at every address of every target of the name's SRV records, with the record's
//   port file:///path          those that the file lists (address_file.h), at every Resolve
// INVALID_ARGUMENT for anything else. Nothing is looked up before Resolve.
//
// A look-up that fails (a timeout, SERVFAIL, a malformed answer or file) or finds nobody keeps what was found
// before, as long as it lasts: no pool is emptied by an outage of its source. Only a name that does not exist
// (NXDOMAIN), and did not for 10 minutes, loses its workers. One entry's trouble does not touch the others.
StatusOr<std::unique_ptr<Discovery>> MakeDiscovery(const std::vector<std::string>& workers,
                                                   const DiscoveryOptions& options = {});

}  // namespace terrace
