// Which addresses a tier's workers have. Static lists and DNS names here; a fake in cluster_test.cc.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/host_port.h"
#include "base/status.h"

namespace terrace {

struct Discovered {
  std::vector<std::string> addresses = {};  // host:port of every worker, sorted, each once
  std::vector<Status> errors = {};          // of names whose addresses may be old
};

class Discovery {
 public:
  virtual ~Discovery() = default;
  // May block: called only by the cluster's discovery thread.
  virtual Discovered Resolve() = 0;
};

// host:port of every address that a name has now. May block.
using DnsLookup = std::function<StatusOr<std::vector<std::string>>(const HostPort& name)>;
StatusOr<std::vector<std::string>> SystemDnsLookup(const HostPort& name);

// Entries are host:port, or dns:///host:port for every address of a name. INVALID_ARGUMENT for anything else.
// A name that cannot be looked up, or has no address, keeps the last addresses it had; the others are not
// touched by it.
StatusOr<std::unique_ptr<Discovery>> MakeDiscovery(const std::vector<std::string>& workers,
                                                   DnsLookup look_up = SystemDnsLookup);

}  // namespace terrace
