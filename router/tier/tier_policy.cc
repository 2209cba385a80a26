#include "router/tier/tier_policy.h"

#include <utility>

namespace terrace {
namespace {

class FixedPlanPolicy : public TierPolicy {
 public:
  explicit FixedPlanPolicy(std::vector<PlanStep> steps) : steps_(std::move(steps)) {}
  std::vector<PlanStep> Plan(const Request&, const ClusterView&) const override { return steps_; }

 private:
  const std::vector<PlanStep> steps_;
};

}  // namespace

std::unique_ptr<TierPolicy> MakeNamedPolicy(size_t tier) {
  return std::make_unique<FixedPlanPolicy>(std::vector<PlanStep>{{.tier = tier}});
}

std::unique_ptr<TierPolicy> MakeCascadePolicy(std::vector<PlanStep> steps) {
  CHECK(!steps.empty());
  for (size_t i = 0; i < steps.size(); ++i) {
    const bool is_last = i + 1 == steps.size();
    CHECK(steps[i].gate.is_open() == is_last, "step ", i);
  }
  return std::make_unique<FixedPlanPolicy>(std::move(steps));
}

}  // namespace terrace
