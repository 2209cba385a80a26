// The whole router: cluster, dispatcher and the three listeners, wired. Owned by main (and by tests); Start,
// Stop and destruction from the owner's thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/metrics.h"
#include "base/status.h"
#include "router/server/options.h"

namespace terrace {

class Router {
 public:
  // UNAVAILABLE when an address cannot be bound. `metrics` outlives the router.
  static StatusOr<std::unique_ptr<Router>> Start(const RouterOptions& options, MetricRegistry& metrics);
  virtual ~Router() = default;  // ends requests in flight

  // The real addresses; "" for a listener that is off.
  virtual std::string http_address() const = 0;
  virtual std::string grpc_address() const = 0;
  virtual std::string ops_address() const = 0;

  // Not ready, and refuses new requests, from now on.
  virtual void BeginDrain() = 0;
  virtual size_t in_flight() const = 0;
};

}  // namespace terrace
