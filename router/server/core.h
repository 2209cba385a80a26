// Everything that one configuration makes: models, tenants, admission, balancer, cluster, dispatcher. A
// reload makes a new one beside the old one, which answers the requests it has and is then destroyed. The
// cluster, with its connections and prefix index, is handed on when the settings that it is made of are the
// same but for manifests; else the Discovery of each entry that stays is, with what it has found. What is at
// work and what waits is counted over all of them (AdmissionBook). What requests reach through a Core is
// thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/metrics.h"
#include "base/status.h"
#include "base/tls.h"
#include "router/admission/admission.h"
#include "router/api/api_options.h"
#include "router/balance/balancer.h"
#include "router/cluster/cluster.h"
#include "router/dispatch/dispatcher.h"
#include "router/server/options.h"
#include "router/server/tenants.h"
#include "router/tier/model_catalog.h"

namespace terrace {

class Core {
 public:
  // What outlives the configurations.
  struct Lasting {
    TenantLedger& ledger;
    AdmissionBook& book;
    std::shared_ptr<TenantLabels> labels;
    std::shared_ptr<Quarantine> quarantine;
    std::shared_ptr<TlsSource> worker_tls;  // null: plain text
    std::function<void()> on_change;  // on the cluster's thread after each change of its view; must not block
  };
  // `previous` may be null; `metrics`, the ledger and the book outlive the core. Until it is TakeCharge'd the
  // admission goes on as before. FAILED_PRECONDITION as of MakeRouterOptions and Tenants::Load.
  static StatusOr<std::shared_ptr<Core>> Make(const RouterOptions& options, MetricRegistry& metrics,
                                              Lasting lasting, const Core* previous);

  ~Core();
  const RouterOptions& options() const { return options_; }
  const ModelCatalog& catalog() const { return *catalog_; }
  std::shared_ptr<const ClusterView> View() const { return cluster_->View(); }
  Dispatcher& dispatcher() { return *dispatcher_; }
  Admission& admission() { return *admission_; }
  const Admission& admission() const { return *admission_; }

  std::shared_ptr<const ApiOptions> MakeApiOptions(std::function<bool()> is_ready,
                                                   decltype(ApiOptions::run_aside) run_aside,
                                                   int64_t started_unix_seconds, uint64_t seed) const;

  // Reads the manifests anew, which count from a moment later on; all else stays, and so does all when there
  // is an error: as of LoadGates. The owner's thread, like the next two.
  Status ReloadManifests();
  bool HasUnreadableManifest() const;
  // Its limits, its workers and its manifests count for all requests from now on.
  void TakeCharge();
  void EndRequests() { dispatcher_->EndRequests(); }  // any thread
  // Any thread. Tells the admission how much the workers take now, and lets go of what waits in vain.
  void Housekeep();

 private:
  Core(const RouterOptions& options, MetricRegistry& metrics, const Lasting& lasting)
      : options_(options),
        metrics_(metrics),
        ledger_(lasting.ledger),
        recorder_(metrics, TierNames(options), lasting.labels) {}
  static std::vector<std::string> TierNames(const RouterOptions& options);
  void CheckPolicies(const ClusterView& view);

  const RouterOptions options_;
  MetricRegistry& metrics_;
  TenantLedger& ledger_;
  std::unique_ptr<ModelCatalog> catalog_;
  std::shared_ptr<const Tenants> tenants_;  // null: nobody is asked for a key
  std::unique_ptr<Balancer> balancer_;
  std::unique_ptr<Admission> admission_;
  Recorder recorder_;
  std::vector<std::shared_ptr<const ManifestGate>> gates_;  // the owner's thread; by tier; null: any model
  std::shared_ptr<Cluster> cluster_;
  std::unique_ptr<Dispatcher> dispatcher_;
  std::mutex stale_mutex_;
  std::set<std::string> stale_;  // policies; GUARDED_BY(stale_mutex_)
};

uint64_t RandomSeed();  // from the system

// What the tiers' manifests say now, by tier; null where none is required. FAILED_PRECONDITION for a key that
// cannot be used.
StatusOr<std::vector<std::shared_ptr<const ManifestGate>>> LoadGates(const RouterOptions& options);

// UNAVAILABLE, with the tier and a cause, for one that is ready in `before` and in `after` has no ready
// replica, though it is still there and manifests do not keep out all of its workers that can be reached.
Status CheckAsReady(const ClusterView& before, const ClusterView& after);

// One tier that can answer is enough.
bool IsReady(const ClusterView& view);

}  // namespace terrace
