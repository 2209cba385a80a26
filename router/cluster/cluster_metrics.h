// What operators see of the cluster beside its latest view: what happened, counted. Owned by the Cluster.
// Thread-safe, unless said.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/metrics.h"
#include "text/token_cache.h"

namespace terrace {

class ClusterMetrics {
 public:
  // `tiers` as configured; there is a series for each from the start. `metrics` outlives this.
  ClusterMetrics(MetricRegistry& metrics, std::span<const std::string> tiers);

  void OnResync(size_t tier) { tiers_[tier].resyncs->Add(); }
  void OnEjection(size_t tier, std::string_view fault);  // one of kFaults (ejection.h)
  // `failures` look-ups failed; `is_whole`: what was found last is all up to date now.
  void OnDiscovery(size_t tier, size_t failures, bool is_whole);
  // Its counts now. One thread.
  void OnTokenCache(const TokenCache::Counts& counts);

 private:
  struct Tier {
    std::string name;
    MetricRegistry::Counter *resyncs, *errors;  // all live as long as the registry
    MetricRegistry::Gauge* discovered;
  };
  MetricRegistry& metrics_;
  std::vector<Tier> tiers_;
  MetricRegistry::Counter *hit_bytes_, *missed_bytes_;
  TokenCache::Counts told_;  // of the token cache, so far
};

}  // namespace terrace
