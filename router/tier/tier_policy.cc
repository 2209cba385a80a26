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

size_t NextStep(std::span<const PlanStep> steps, size_t step, const AnswerSignals& first) {
  CHECK(step + 1 < steps.size(), "step ", step, " of ", steps.size());
  do {
    ++step;
  } while (step + 1 < steps.size() && !steps[step].choice.Accepts(first));
  return step;
}

bool NeedsSignals(std::span<const PlanStep> steps, size_t step) {
  if (steps[step].gate.needs_signals()) return true;
  return step == 0 &&
         std::ranges::any_of(steps, [](const PlanStep& each) { return each.choice.needs_signals(); });
}

std::string ReasonOf(const TierPlan& plan, size_t step, const AnswerSignals& first) {
  if (plan.chooses_by_first_token && step > 0 && first.tokens == 0) return kNoFirstToken;
  return plan.names_step ? Concat(plan.reason, ": accepted at step ", step + 1) : plan.reason;
}

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
  return std::make_unique<FixedPlanPolicy>(TierPlan{.steps = std::move(steps),
                                                    .reason = drafts ? "verify" : "cascade",
                                                    .names_step = !drafts,
                                                    .is_measured = true});
}

}  // namespace terrace
