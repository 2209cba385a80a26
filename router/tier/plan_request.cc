#include "router/tier/plan_request.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "router/request/param.h"
#include "router/tier/budget_policy.h"
#include "router/tier/price_bound.h"

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

// Leaves what fits in the request's limit of its price.
StatusOr<TierPlan> Within(const ModelCatalog& catalog, const PlanQuery& query, TierPlan plan) {
  const double limit = *query.request.max_usd();
  std::vector<std::optional<double>> usd;  // by step; absent: it cannot have the prompt
  double sum = 0, least = std::numeric_limits<double>::infinity();
  for (const PlanStep& step : plan.steps) {
    const auto most = MostUsd(query, query.view.tiers[step.tier], catalog.tiers()[step.tier].price);
    usd.push_back(most.ok() ? std::optional<double>(*most) : std::nullopt);
    if (!most.ok() && usd.size() == plan.steps.size()) return most.status();
    if (!most.ok()) continue;
    sum += *most;
    if (!step.gate.is_closed()) least = std::min(least, *most);
  }
  plan.is_priced = true;
  if (sum <= limit) return plan;
  std::vector<PlanStep> kept;
  sum = 0;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    PlanStep& step = plan.steps[i];
    if (step.gate.is_closed() || !usd[i].has_value() || sum + *usd[i] > limit) continue;
    sum += *usd[i];
    step.verifies = step.verifies && !kept.empty();
    kept.push_back(std::move(step));
  }
  if (kept.empty()) return RequestsBudgetTooSmall(query.request, least);
  kept.back().gate = Gate();
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
  if (!plan.ok() || plan->is_priced || !query.request.max_usd().has_value()) return plan;
  return Within(catalog, query, *std::move(plan));
}

}  // namespace terrace
