#include "router/tier/tier_policy.h"

#include <algorithm>
#include <utility>

namespace terrace {
namespace {

class FixedPlanPolicy : public TierPolicy {
 public:
  explicit FixedPlanPolicy(TierPlan plan) : plan_(std::move(plan)) {}
  StatusOr<TierPlan> Plan(const PlanQuery&) const override { return plan_; }

 private:
  const TierPlan plan_;
};

}  // namespace

std::unique_ptr<TierPolicy> MakeNamedPolicy(size_t tier) {
  return std::make_unique<FixedPlanPolicy>(TierPlan{.steps = {{.tier = tier}}, .reason = "named"});
}

std::unique_ptr<TierPolicy> MakeCascadePolicy(std::vector<PlanStep> steps) {
  CHECK(!steps.empty());
  for (size_t i = 0; i < steps.size(); ++i) {
    const bool is_last = i + 1 == steps.size();
    CHECK(steps[i].gate.is_open() == is_last, "step ", i);
  }
  const bool drafts = std::ranges::any_of(steps, [](const PlanStep& step) { return step.gate.is_closed(); });
  return std::make_unique<FixedPlanPolicy>(
      TierPlan{.steps = std::move(steps), .reason = drafts ? "verify" : "cascade", .names_step = !drafts});
}

}  // namespace terrace
