// Which of a tier's replicas gets a request. A Balancer is const and pure: what it knows is in its arguments.
// Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/status.h"
#include "router/cluster/cluster_view.h"
#include "router/request/request.h"

namespace terrace {

struct Candidate {  // a ready replica that this request has not tried
  ReplicaId id = 0;
  uint32_t running_sequences = 0, waiting_sequences = 0;
};

class Balancer {
 public:
  virtual ~Balancer() = default;
  // `rotation` counts the picks of this router. UNAVAILABLE (no_capacity) without candidates.
  virtual StatusOr<ReplicaId> Pick(const Request& request, std::span<const Candidate> candidates,
                                   uint64_t rotation) const = 0;
};

// Each in turn.
std::unique_ptr<Balancer> MakeRoundRobinBalancer();

}  // namespace terrace
