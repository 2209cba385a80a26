// What operators ask the router on its ops listener: /metrics, /healthz, /readyz, /statusz, by GET
// or HEAD; and POST /drain, of this machine's processes alone. Runs on that listener's threads. Thread-safe.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/http_server.h"
#include "base/json.h"
#include "base/metrics.h"
#include "router/server/cores.h"

namespace terrace {

class OpsHandler {
 public:
  // All of it outlives the handler.
  OpsHandler(MetricRegistry& metrics, const Cores& cores, const Clock& clock, std::function<void()> drain)
      : metrics_(metrics), cores_(cores), clock_(clock), started_(clock.Now()), drain_(std::move(drain)) {}

  void Handle(const HttpRequest& request, HttpResponder& responder);
  void SetDraining() { is_draining_ = true; }  // not ready from now on

 private:
  void Drain(const HttpRequest& request, HttpResponder& responder);
  std::string Metrics();
  Json Readiness() const;  // {"ready":...,"tiers_not_ready":[...],"tiers_refused":{"tier":"reason"}}
  Json StatusPage() const;

  MetricRegistry& metrics_;
  const Cores& cores_;
  const Clock& clock_;
  const MonoTime started_;
  const std::function<void()> drain_;
  std::atomic<bool> is_draining_ = false;
  std::mutex mutex_;
  std::set<std::string> tiers_;  // that were ever seen; GUARDED_BY(mutex_)
  std::map<std::pair<std::string, std::string>, bool>
      replicas_;  // tier, address -> seen now; GUARDED_BY(mutex_)
};

}  // namespace terrace
