#include "router/balance/balancer.h"

namespace terrace {
namespace {

class RoundRobinBalancer : public Balancer {
 public:
  StatusOr<ReplicaId> Pick(const Request&, std::span<const Candidate> candidates,
                           uint64_t rotation) const override {
    if (candidates.empty()) return WithReason(Unavailable("no ready replica"), "no_capacity");
    return candidates[rotation % candidates.size()].id;
  }
};

}  // namespace

std::unique_ptr<Balancer> MakeRoundRobinBalancer() { return std::make_unique<RoundRobinBalancer>(); }

}  // namespace terrace
