// What operators ask the router on its ops listener: /metrics, /healthz, /readyz, /statusz, by GET
// or HEAD. Runs on that listener's threads. Thread-safe.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "base/clock.h"
#include "base/http_server.h"
#include "base/json.h"
#include "base/metrics.h"
#include "router/cluster/cluster_view.h"
#include "router/dispatch/dispatcher.h"

namespace terrace {

// All of it outlives the handler.
struct OpsParts {
  MetricRegistry& metrics;
  const ClusterSource& cluster;
  const ModelCatalog& catalog;
  const Dispatcher& dispatcher;
  const Admission& admission;
  const Clock& clock;
};

class OpsHandler {
 public:
  explicit OpsHandler(const OpsParts& parts) : parts_(parts), started_(parts.clock.Now()) {}

  void Handle(const HttpRequest& request, HttpResponder& responder);
  void SetDraining() { is_draining_ = true; }  // not ready from now on

 private:
  std::string Metrics();
  Json Readiness() const;  // {"ready":...,"tiers_not_ready":[...]}
  Json StatusPage() const;

  const OpsParts parts_;
  const MonoTime started_;
  std::atomic<bool> is_draining_ = false;
  std::mutex mutex_;
  std::map<std::pair<std::string, std::string>, bool>
      replicas_;  // tier, address -> seen now; GUARDED_BY(mutex_)
};

}  // namespace terrace
