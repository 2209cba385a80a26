#include "router/cluster/cluster_metrics.h"

#include <chrono>

#include "router/cluster/ejection.h"

namespace terrace {
namespace {

using Labels = std::vector<std::string>;

MetricRegistry::Counter& EjectionCounter(MetricRegistry& metrics, const std::string& tier,
                                         std::string_view fault) {
  return metrics.GetCounter("terrace_worker_ejections_total", Labels{tier, std::string(fault)});
}

}  // namespace

ClusterMetrics::ClusterMetrics(MetricRegistry& metrics, std::span<const std::string> tiers)
    : metrics_(metrics),
      hit_bytes_(&metrics.GetCounter("terrace_token_cache_bytes_total", Labels{"hit"})),
      missed_bytes_(&metrics.GetCounter("terrace_token_cache_bytes_total", Labels{"miss"})) {
  for (const std::string& name : tiers) {
    const Labels labels = {name};
    tiers_.push_back(
        {.name = name,
         .resyncs = &metrics.GetCounter("terrace_prefix_resyncs_total", labels),
         .errors = &metrics.GetCounter("terrace_discovery_errors_total", labels),
         .discovered = &metrics.GetGauge("terrace_discovery_success_timestamp_seconds", labels)});
    for (const std::string_view fault : kFaults) EjectionCounter(metrics, name, fault);
  }
}

void ClusterMetrics::OnDiscovery(size_t tier, size_t failures, bool is_whole) {
  tiers_[tier].errors->Add(static_cast<double>(failures));
  if (!is_whole) return;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  tiers_[tier].discovered->Set(std::chrono::duration<double>(now).count());
}

void ClusterMetrics::OnTokenCache(const TokenCache::Counts& counts) {
  hit_bytes_->Add(static_cast<double>(counts.hit - told_.hit));
  missed_bytes_->Add(static_cast<double>(counts.missed - told_.missed));
  told_ = counts;
}

void ClusterMetrics::OnEjection(size_t tier, std::string_view fault) {
  EjectionCounter(metrics_, tiers_[tier].name, fault).Add();
}

}  // namespace terrace
