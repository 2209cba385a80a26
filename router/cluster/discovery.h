// Which addresses a tier's workers have: listed ones, DNS names, SRV names and files here; a fake in
// cluster_test.cc.
//
// Each name and each file is a Discovery of its own, and the cluster looks at each on a thread of its own: a
// name server that does not answer holds up nobody but its names. Clusters of several configurations share
// those that stay, so that a reload knows what was found before it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/host_port.h"
#include "base/status.h"
#include "router/cluster/srv_lookup.h"

namespace terrace {

struct Discovered {
  std::vector<std::string> addresses = {};  // host:port of every worker, sorted, each once
  std::vector<Status> errors = {};          // of look-ups that failed: the addresses may be old
};

// Thread-safe.
class Discovery {
 public:
  virtual ~Discovery() = default;
  // Looks now, or waits for whoever looks already, and finds the same: a name server that does not answer is
  // waited for once, however many clusters share this. May block for as long as name servers take.
  Discovered Resolve();
  // What was found last; absent before the first time. Never blocks.
  std::optional<Discovered> latest() const;
  // Whether a look asks name servers, which is done less often.
  virtual bool asks_names() const { return false; }

 private:
  virtual Discovered Look() = 0;  // one thread at a time

  mutable std::mutex mutex_;
  std::condition_variable ended_;     // a look
  bool is_looking_ = false;           // GUARDED_BY(mutex_)
  uint64_t looks_ = 0;                // GUARDED_BY(mutex_): that have ended
  std::optional<Discovered> latest_;  // GUARDED_BY(mutex_)
};
// By entry: names and files; and all listed addresses together, by "".
using Discoveries = std::map<std::string, std::shared_ptr<Discovery>>;

// host:port of every address that a name has now. NOT_FOUND: there is no such name. May block.
using DnsLookup = std::function<StatusOr<std::vector<std::string>>(const HostPort& name)>;
StatusOr<std::vector<std::string>> SystemDnsLookup(const HostPort& name);

struct DiscoveryOptions {
  DnsLookup look_up = SystemDnsLookup;
  SrvLookup look_up_srv = SystemSrvLookup;
  const Clock& clock = RealClock();  // outlives the discovery
};

// Entries are
//   host:port             a worker
//   dns:///host:port      one at every address of the name
//   srv:///name           one at every address of every target of the name's SRV records, with the record's
//   port file:///path          those that the file lists (address_file.h)
// INVALID_ARGUMENT for anything else, and for more than kMostNames names. Nothing is looked up before
// Resolve. An entry that `known` has is taken from there, with what it has found.
//
// A look-up that fails (a timeout, SERVFAIL, a malformed answer or file) or finds nobody keeps what was found
// before, as long as it lasts: no pool is emptied by an outage of its source. Only a name that does not exist
// (NXDOMAIN), and did not for 10 minutes, loses its workers. One entry's trouble does not touch the others.
inline constexpr size_t kMostNames = 256;  // and files, of one tier: each has a thread
StatusOr<Discoveries> MakeDiscoveries(const std::vector<std::string>& workers,
                                      const DiscoveryOptions& options = {}, const Discoveries& known = {});

}  // namespace terrace
