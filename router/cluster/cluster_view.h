// What the router knows about its workers at one moment. A ClusterView is immutable and shared; the Cluster
// is the only one who makes them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "router/cluster/replica_client.h"
#include "text/text_assets.h"

namespace terrace {

using ReplicaId = uint32_t;  // never used twice in one process

enum class ReplicaState : uint8_t {
  kConnecting,  // not reached yet, or lost
  kStarting,    // reached, loading its model
  kReady,       // the only state that takes requests
  kDraining,    // finishes what it has
  kSilent,      // connected, but no update for watch_timeout
  kMismatch,    // another model or tokenizer than the rest of its tier
};
inline constexpr ReplicaState kReplicaStates[] = {ReplicaState::kConnecting, ReplicaState::kStarting,
                                                  ReplicaState::kReady,      ReplicaState::kDraining,
                                                  ReplicaState::kSilent,     ReplicaState::kMismatch};
const char* ReplicaStateName(ReplicaState state);

struct ReplicaLoad {
  uint32_t running_sequences = 0, waiting_sequences = 0;
  uint32_t free_blocks = 0, total_blocks = 0;
  uint32_t cached_blocks = 0;  // free when needed
};

struct ReplicaDescription {
  std::string instance = {}, model = {}, model_digest = {}, text_digest = {}, version = {}, device = {},
              weight_dtype = {};
  uint64_t parameters = 0;
  uint32_t vocab_size = 0, context_length = 0;
};

struct ReplicaView {
  ReplicaId id = 0;
  std::string address = {};
  ReplicaState state = ReplicaState::kConnecting;
  ReplicaDescription description = {};  // of the last time it was reached
  ReplicaLoad load = {};
  std::string last_error = {};
  std::shared_ptr<ReplicaClient> client = {};
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

  size_t ready_replicas() const;
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
