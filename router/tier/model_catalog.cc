#include "router/tier/model_catalog.h"

#include <algorithm>
#include <utility>

#include "router/request/param.h"
#include "router/tier/calibration_policy.h"

namespace terrace {

StatusOr<std::unique_ptr<ModelCatalog>> ModelCatalog::Make(std::vector<CatalogTier> tiers,
                                                           std::vector<CatalogPolicy> policies,
                                                           const std::string& default_model) {
  std::unique_ptr<ModelCatalog> out(new ModelCatalog());
  const auto add_name = [&](const std::string& name) -> Status {
    // Entries are added right after their first name.
    if (out->by_name_.emplace(name, out->entries_.size()).second) return {};
    return FailedPrecondition("\"", name, "\" names two things");
  };
  std::vector<std::string> names;
  std::vector<TierPrice> prices;
  for (const CatalogTier& tier : tiers) {
    names.push_back(tier.name);
    prices.push_back(tier.price);
  }
  for (CatalogPolicy& policy : policies) {
    RETURN_IF_ERROR(add_name(policy.name));
    CatalogEntry entry{.id = policy.name, .is_policy = true, .shadow = policy.shadow};
    for (const PlanStep& step : policy.steps) {
      CHECK(step.tier < tiers.size());
      entry.tiers.push_back(step.tier);
    }
    if (policy.calibration.has_value()) {
      CalibratedPolicyOptions options{.verifies = true, .holds = std::move(policy.holds)};
      if (policy.cache_affinity) options.affinity_prices = prices;
      ASSIGN_OR_RETURN(entry.policy, MakeCalibratedPolicy(*policy.calibration, names, std::move(options)));
      for (const CalibratedStep& step : policy.calibration->steps)
        entry.tiers.push_back(static_cast<size_t>(std::ranges::find(names, step.tier) - names.begin()));
    } else if (policy.budget.has_value()) {
      for (const BudgetCandidate& each : policy.budget->candidates) entry.tiers.push_back(each.tier);
      ASSIGN_OR_RETURN(entry.policy, MakeBudgetPolicy(*std::move(policy.budget), names, prices));
    } else {
      entry.policy = MakeCascadePolicy(std::move(policy.steps));
    }
    out->entries_.push_back(std::move(entry));
  }
  for (size_t i = 0; i < tiers.size(); ++i) {
    RETURN_IF_ERROR(add_name(tiers[i].name));
    for (const std::string& alias : tiers[i].aliases) RETURN_IF_ERROR(add_name(alias));
    out->entries_.push_back({.id = tiers[i].name, .tiers = {i}, .policy = MakeNamedPolicy(i)});
  }
  out->tiers_ = std::move(tiers);
  if (!default_model.empty()) {
    const auto found = out->by_name_.find(default_model);
    if (found == out->by_name_.end()) return FailedPrecondition("no tier or policy \"", default_model, "\"");
    out->default_entry_ = found->second;
  }
  return out;
}

StatusOr<const CatalogEntry*> ModelCatalog::Find(std::string_view model) const {
  if (model.empty()) return &entries_[default_entry_];
  const auto found = by_name_.find(model);
  if (found != by_name_.end()) return &entries_[found->second];
  return ModelNotFound(model);
}

}  // namespace terrace
