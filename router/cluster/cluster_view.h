// What the router knows about its workers at one moment. A ClusterView is immutable and shared; the Cluster
// is the only one who makes them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "router/cluster/prefix_index.h"
#include "router/cluster/replica_client.h"
#include "text/block_key.h"
#include "text/text_assets.h"

namespace terrace {

using ReplicaId = uint32_t;  // never used twice in one process

enum class ReplicaState : uint8_t {
  kConnecting,  // not reached yet, or lost
  kStarting,    // reached, loading its model
  kReady,       // the only state that takes requests
  kDraining,    // finishes what it has
  kSilent,      // connected, but no update for watch_timeout
  kMismatch,    // another model or tokenizer than the rest of its tier, or another protocol
  kEjected,     // ready, but its calls kept failing: no requests for a while
  kRefused,     // ready, but no manifest of its tier lets its model in
  kStalled,     // it says that its engine makes no steps, though it has work
};
inline constexpr ReplicaState kReplicaStates[] = {
    ReplicaState::kConnecting, ReplicaState::kStarting, ReplicaState::kReady,
    ReplicaState::kDraining,   ReplicaState::kSilent,   ReplicaState::kMismatch,
    ReplicaState::kEjected,    ReplicaState::kRefused,  ReplicaState::kStalled};
const char* ReplicaStateName(ReplicaState state);
// Nothing comes of the calls under way there.
inline bool IsHung(ReplicaState state) {
  return state == ReplicaState::kSilent || state == ReplicaState::kStalled;
}

struct ReplicaLoad {
  uint32_t running_sequences = 0, waiting_sequences = 0;
  uint64_t waiting_prompt_tokens = 0;
  uint32_t free_blocks = 0, total_blocks = 0;
  uint32_t cached_blocks = 0;                                      // free when needed
  uint64_t speculated_tokens = 0, accepted_speculated_tokens = 0;  // of its own drafts, since its start
};

// What this router has under way on one replica; its Watch tells of it up to a quarter of a second later.
// Thread-safe.
struct ReplicaInFlight {
  std::atomic<uint32_t> requests = 0;
  std::atomic<uint64_t> prompt_tokens = 0;  // to be computed before their first tokens
};

// What a replica has to do for others than this router.
struct OthersLoad {
  uint32_t sequences = 0;      // running and waiting
  uint64_t prompt_tokens = 0;  // to be computed
};
// As of now, when the replica's report has come: what it tells, less what this router has under way there.
// Until the next report that is taken to stay, while the router's own requests are known from moment to
// moment.
OthersLoad LoadOfOthers(const ReplicaLoad& reported, const ReplicaInFlight& ours);

// Who learns how the calls of one replica end. Thread-safe; never blocks.
class CallObserver {
 public:
  virtual ~CallObserver() = default;
  // Of an Execute call that its caller did not cancel: OK, or what was wrong with it.
  virtual void OnCallEnd(const Status& status) = 0;
};

struct ReplicaDescription {
  std::string instance = {}, model = {}, model_digest = {}, text_digest = {}, version = {}, device = {},
              weight_dtype = {}, kv_dtype = {}, compute = {};
  uint64_t parameters = 0;
  uint32_t vocab_size = 0, context_length = 0;
  uint32_t block_tokens = 0;
  uint32_t max_sequences = 0;  // that it batches at once
  std::string kv_layout = {};  // of its block keys; "" when it keeps no prefixes
  std::string drafter = {};    // as of WorkerDescription, for people; "": none
  // Memory of each rank of the group that runs the model, weights and KV pool; empty: one process runs it.
  std::vector<uint64_t> rank_bytes = {};
  uint32_t tensor_parallel = 1, pipeline_parallel = 1;  // of the group; as of WorkerDescription
};

struct ReplicaView {
  ReplicaId id = 0;
  std::string address = {};
  ReplicaState state = ReplicaState::kConnecting;
  ReplicaDescription description = {};  // of the last time it was reached
  ReplicaLoad load = {};                // as reported
  OthersLoad others = {};               // of it
  std::string last_error = {};
  std::string refusal = {};  // of kRefused: one of kManifestReasons
  std::shared_ptr<ReplicaClient> client = {};
  PrefixIndex::Slot prefix_slot = 0;
  std::shared_ptr<ReplicaInFlight> in_flight = {};
  std::shared_ptr<CallObserver> observer = {};  // told of every call
  bool is_leaving = false;                      // it drains, or did and has not been ready since
  float weight = 1;                             // SlowStartWeight
};

// The share of requests, of a whole one, that a replica gets which has taken requests for so long: from a
// tenth to 1 in `whole_after`.
float SlowStartWeight(Duration in_use, Duration whole_after);

// A ready replica, with what a choice among thousands looks at and nothing else.
struct ReadyReplica {
  ReplicaId id = 0;
  uint32_t index = 0;  // in TierView::replicas
  PrefixIndex::Slot prefix_slot = 0;
  OthersLoad others = {};
  const ReplicaInFlight* in_flight = nullptr;  // the replica's; what is ours
};

// How some of a tier's replicas name KV blocks: mostly all of them in one way.
struct KvNaming {
  BlockKeyScope scope = {};  // but for the salt
  uint32_t block_tokens = 0;
  friend bool operator==(const KvNaming&, const KvNaming&) = default;
};

struct TierView {
  std::string name = {};
  std::vector<ReplicaView> replicas = {};
  // Of the model that the ready replicas share; kept while none is ready, empty before the first one was.
  std::shared_ptr<const TextAssets> text = {};
  std::string model = {}, model_digest = {}, text_digest = {};
  uint64_t parameters = 0;
  uint32_t vocab_size = 0;
  uint32_t context_length = 0;  // the least among the ready replicas
  std::vector<ReadyReplica> ready = {};
  std::vector<float> weights = {};        // of `ready`; empty when all are 1, as mostly
  std::vector<KvNaming> kv_namings = {};  // of the ready replicas, each once
  std::shared_ptr<const PrefixIndex> prefixes = {};

  size_t ready_replicas() const { return ready.size(); }
  // All that there are: waiting makes none of them ready.
  bool is_refused() const {
    return !replicas.empty() && std::ranges::all_of(replicas, [](const ReplicaView& replica) {
      return replica.state == ReplicaState::kRefused;
    });
  }
  // Fills `ready`, `weights` and `kv_namings` from `replicas` and `model_digest`.
  void FindReady();
};

struct ClusterView {
  std::vector<TierView> tiers = {};  // as configured
};

// Where a dispatcher sees the cluster. Thread-safe.
class ClusterSource {
 public:
  virtual ~ClusterSource() = default;
  virtual std::shared_ptr<const ClusterView> View() const = 0;  // never null
};

}  // namespace terrace
