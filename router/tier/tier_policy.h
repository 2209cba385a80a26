// Which tiers answer a request, in which order. A TierPolicy is const and pure. Thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "base/status.h"
#include "router/cluster/cluster_view.h"
#include "router/request/request.h"
#include "router/tier/gate.h"

namespace terrace {

struct PlanStep {
  size_t tier = 0;  // index into ClusterView::tiers
  Gate gate = {};
  // The answer of the step before is verified as a draft: this step's own comes sooner, and is no other.
  bool verifies = false;
};

class TierPolicy {
 public:
  virtual ~TierPolicy() = default;
  // The steps in order; the last one's gate is open. At least one: a tier without a ready replica
  // may come back while the request is under way, so it is the dispatcher's to skip.
  virtual std::vector<PlanStep> Plan(const Request& request, const ClusterView& view) const = 0;
  // Why its plans are not what it was made for, if so: FAILED_PRECONDITION, reason stale_calibration.
  virtual Status Check(const ClusterView&) const { return {}; }
};

// The tier that the client named.
std::unique_ptr<TierPolicy> MakeNamedPolicy(size_t tier);

// These steps for every request. The last one's gate is open, the others' are not (CHECK).
std::unique_ptr<TierPolicy> MakeCascadePolicy(std::vector<PlanStep> steps);

}  // namespace terrace
