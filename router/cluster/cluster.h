// Keeps a connection to every worker of every tier and is the single writer of ClusterView snapshots. Owns
// the cluster thread (its EventLoop) and a thread for each of its Discoveries. View may be called from any
// thread; construction and destruction from the owner's.
//
// A replica's life: Describe -> FetchText once per text digest -> Watch. It takes requests while its watch
// says READY, its last update is younger than watch_timeout and its model is the one its tier serves. When a
// step fails it is tried again after a backoff that doubles, with jitter. A Watch with a gap, or whose
// prefixes do not have the digest they should, is begun anew at once: the replica keeps its place, but
// nothing is known of its prefixes until the new snapshot.
//
// One that is silent loses the calls under way there too: they end with UNAVAILABLE, kSilentReason. So does
// one whose watch says that its engine stalls, though it speaks.
//
// A tier may have a gate (router/manifest): a replica whose model it does not let in takes no requests, and
// no part in what its tier serves, however ready it is. Gates may change at any time; what is under way goes
// on.
//
// A replica whose calls keep failing takes no requests for a while (ejection.h); when nobody else of its tier
// does, it does. One that begins to take requests, for the first time or again, starts slowly: its weight
// grows with every view. Weights are relative, so a tier that begins as a whole is as fast as ever.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/hash.h"
#include "base/metrics.h"
#include "router/cluster/cluster_metrics.h"
#include "router/cluster/cluster_view.h"
#include "router/cluster/discovery.h"
#include "router/cluster/ejection.h"
#include "router/cluster/event_loop.h"
#include "router/cluster/grpc_worker.h"
#include "router/manifest/manifest_gate.h"
#include "text/token_cache.h"

namespace terrace {

struct ClusterOptions {
  struct Tier {
    std::string name;
    Discoveries discoveries = {};                   // what they have found so far is used at once
    std::shared_ptr<const ManifestGate> gate = {};  // null: any model
  };
  std::vector<Tier> tiers = {};
  Duration connect_backoff = std::chrono::milliseconds(250);  // the first; at most 16 times it
  Duration watch_timeout = std::chrono::seconds(3);
  Duration call_timeout = std::chrono::seconds(10);     // of Describe; FetchText has 6 times it
  Duration discovery_period = std::chrono::seconds(1);  // between two looks of a Discovery
  Duration dns_refresh = std::chrono::seconds(10);      // of one that asks name servers
  EjectionOptions ejection = {};
  Duration slow_start = std::chrono::seconds(30);
  // A tier without a ready replica takes another version of its model, and only after so long another model.
  Duration model_kept = std::chrono::minutes(10);
  WorkerChannelOptions channels = {};
  size_t token_cache_bytes = 0;  // of the texts that are tokenized, of all tiers together; 0: there is none
  uint64_t seed = 0;             // of the jitter
  // Called on the cluster thread after each change of the view. Must not block.
  std::function<void(const ClusterView&)> on_change = {};
};

class Cluster : public ClusterSource {
 public:
  Cluster(ClusterOptions options, MetricRegistry& metrics);  // `metrics` outlives it
  // Cancels its own calls; Execute calls go on. May wait for name servers.
  ~Cluster() override;

  // Of all tiers, for the next configuration's cluster.
  Discoveries discoveries() const;
  std::shared_ptr<const ClusterView> View() const override;

  // Of the tiers, in order, from now on; null: any model. Any thread; takes effect a moment later.
  void SetGates(std::vector<std::shared_ptr<const ManifestGate>> gates);

 private:
  struct Replica;
  struct Tier;
  struct TextEntry {
    std::weak_ptr<const TextAssets> text;  // the replicas', once fetched and checked
    std::weak_ptr<Replica> fetching;       // who fetches it now
    std::vector<std::weak_ptr<Replica>> waiting;
  };
  using ReplicaPtr = std::shared_ptr<Replica>;

  void DiscoverForever(const std::stop_token& stop, size_t tier, const std::string& entry);
  Duration PeriodOf(const Discovery& discovery) const;  // from the end of a look to the next
  void Post(std::function<void()> function) { loop_->Post(std::move(function)); }

  // All below: the cluster thread.
  ReplicaPtr MakeReplica(size_t tier, const std::string& address);
  // `failures`: look-ups that failed just now.
  void OnDiscovered(size_t tier, const std::string& entry, const Discovered& found, size_t failures);
  bool HaveAllLooked(size_t tier) const;  // lately
  void SetAddresses(size_t tier, const std::vector<std::string>& addresses);
  void Connect(const ReplicaPtr& replica);
  void OnDescribed(const ReplicaPtr& replica, StatusOr<ReplicaDescription> description);
  void NeedText(const ReplicaPtr& replica);
  void OnText(const ReplicaPtr& replica, const std::string& digest, StatusOr<std::string> bytes);
  void StartWatch(const ReplicaPtr& replica);
  void OnUpdate(const ReplicaPtr& replica, const WatchUpdate& update);
  void Resynchronise(const ReplicaPtr& replica, const Status& error);
  void Fail(const ReplicaPtr& replica, const Status& error);
  void CheckSilence(MonoTime due);
  void EndCallsOfHung(const Replica& replica);
  void OnCallEnd(const ReplicaPtr& replica, std::string_view fault, uint64_t successes_before);
  void LetIn(Tier& tier, const std::vector<ReplicaId>& replicas);
  void LetInWhenNobodyIsLeft(Tier& tier);
  void ForgetPrefixesSoon(const ReplicaPtr& replica);
  void SetState(const ReplicaPtr& replica, ReplicaState state);
  Status CheckFits(const Tier& tier, const Replica& replica) const;
  void AskGate(const ReplicaPtr& replica);
  void Publish();
  void PublishSoon();  // what may wait a moment: with many replicas there is an update at any time

  const ClusterOptions options_;
  const std::shared_ptr<TokenCache> token_cache_;  // shared with the texts; may be null
  ClusterMetrics metrics_;                         // thread-safe
  std::vector<std::unique_ptr<Tier>> tiers_;       // cluster thread
  std::map<std::string, TextEntry> texts_;         // cluster thread; by digest
  uint64_t jitter_draws_ = 0;                      // cluster thread
  bool is_publish_due_ = false;                    // cluster thread
  std::vector<ReplicaPtr> lost_;                   // cluster thread: their prefixes are to be forgotten
  mutable std::mutex view_mutex_;
  std::shared_ptr<const ClusterView> view_;  // GUARDED_BY(view_mutex_)
  const std::shared_ptr<EventLoop> loop_;    // shared with callbacks that may outlive this object
  std::vector<std::jthread> discoverers_;    // join before anything they use dies
};

}  // namespace terrace
