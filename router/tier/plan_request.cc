#include "router/tier/plan_request.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "router/request/param.h"
#include "router/tier/request_cost.h"

namespace terrace {
namespace {

// The request's tier may be the client's text: it is not repeated.
StatusOr<TierPlan> PlanAsked(const ModelCatalog& catalog, const CatalogEntry& entry, const Request& request) {
  std::string names;
  for (const size_t tier : entry.tiers) {
    const std::string& name = catalog.tiers()[tier].name;
    if (name == request.tier()) {
      if (!request.tenant()->MayUse(name)) return ModelNotAllowed(name);
      return TierPlan{.steps = {{.tier = tier}}, .reason = "override"};
    }
    names += Concat(names.empty() ? "" : ", ", name);
  }
  return ParamError("invalid_value", TierParam(request.api()), "of ", entry.id, " it must be one of ", names);
}

// Leaves what fits in the request's own limits.
StatusOr<TierPlan> Within(const ModelCatalog& catalog, const PlanQuery& query, TierPlan plan) {
  std::vector<std::optional<RequestCost>> costs;  // by step; absent: it cannot have the prompt
  std::vector<RequestCost> of_answers;            // each alone
  RequestCost sum;
  for (const PlanStep& step : plan.steps) {
    const auto cost = CostAt(query, step.tier, catalog.tiers()[step.tier].price);
    costs.push_back(cost.ok() ? std::optional<RequestCost>(*cost) : std::nullopt);
    if (!cost.ok() && costs.size() == plan.steps.size()) return cost.status();
    if (!cost.ok()) continue;
    sum = sum + *cost;
    if (!step.gate.is_closed()) of_answers.push_back(*cost);
  }
  plan.is_limited = true;
  if (FitsLimits(query.request, sum)) return plan;
  std::vector<PlanStep> kept;
  sum = {};
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    PlanStep& step = plan.steps[i];
    if (step.gate.is_closed() || !costs[i].has_value()) continue;
    if (!FitsLimits(query.request, sum + *costs[i])) continue;
    sum = sum + *costs[i];
    step.verifies = step.verifies && !kept.empty();
    kept.push_back(std::move(step));
  }
  if (kept.empty()) return LimitsTooSmall(query.request, of_answers);
  if (plan.chooses_by_first_token && kept.front().gate.is_open()) {  // without the tier that would begin
    kept.erase(kept.begin(), kept.end() - 1);
    kept.back().verifies = false;
    plan.reason = kNoFirstToken;
  }
  kept.back().gate = kept.back().choice = Gate();
  plan.chooses_by_first_token = plan.chooses_by_first_token && kept.size() > 1;
  plan.steps = std::move(kept);
  plan.reason += ", within the request's limit";
  plan.is_measured = false;
  return plan;
}

}  // namespace

StatusOr<TierPlan> PlanRequest(const ModelCatalog& catalog, const CatalogEntry& entry, bool has_drifted,
                               const PlanQuery& query) {
  StatusOr<TierPlan> plan = TierPlan{.steps = {{.tier = entry.tiers.back()}}, .reason = "fallback: drift"};
  if (!query.request.tier().empty()) {
    plan = PlanAsked(catalog, entry, query.request);
  } else if (!has_drifted) {
    plan = entry.policy->Plan(query);
  }
  if (!plan.ok() || plan->is_limited || !query.request.has_limits()) return plan;
  return Within(catalog, query, *std::move(plan));
}

}  // namespace terrace
