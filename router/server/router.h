// The whole router: what a configuration makes (Core), the listeners, and the thread that keeps house. Owned
// by main (and by tests); Start, Reload, Stop and destruction from the owner's thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/metrics.h"
#include "base/status.h"
#include "router/server/options.h"

namespace terrace {

// What Start and Reload would say of the files that `options` name; and FAILED_PRECONDITION for a tier whose
// manifests let no model in, with which a router starts all the same.
Status CheckFiles(const RouterOptions& options);

class Router {
 public:
  // UNAVAILABLE when an address cannot be bound, FAILED_PRECONDITION when a file that `options` names cannot
  // be used. `metrics` outlives the router.
  static StatusOr<std::unique_ptr<Router>> Start(const RouterOptions& options, MetricRegistry& metrics);
  virtual ~Router() = default;  // ends requests in flight

  // Works with `options` from now on, and with what is in the files they name; requests in flight go on as
  // they began. All or nothing: after an error everything is as it was. FAILED_PRECONDITION as of Start, and
  // for settings that need a restart, as of CheckReloadable. With other workers than before it waits until
  // the tiers that are ready now are ready again, for at most ten seconds, or until `is_interrupted`:
  // UNAVAILABLE when one is not by then.
  virtual Status Reload(const RouterOptions& options, const std::function<bool()>& is_interrupted) = 0;

  // Reads the manifests and their keys anew, and nothing else. FAILED_PRECONDITION for a key that cannot be
  // used: then everything is as it was.
  virtual Status ReloadManifests() = 0;
  // When they were read last.
  virtual bool HasUnreadableManifest() const = 0;

  // The real addresses; "" for a listener that is off.
  virtual std::string http_address() const = 0;
  virtual std::string grpc_address() const = 0;
  virtual std::string ops_address() const = 0;

  // Not ready, and refuses new requests, from now on.
  virtual void BeginDrain() = 0;
  // Drains, and tells the clients of all that is in flight or waits that it ends here (UNAVAILABLE,
  // draining). Those requests are soon over, in moments: in_flight says so.
  virtual void EndRequests() = 0;
  virtual size_t in_flight() const = 0;
  virtual double drain_seconds() const = 0;  // of the configuration in use
};

}  // namespace terrace
