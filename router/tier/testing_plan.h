// What tests of policies make plans from.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "router/tier/tier_policy.h"

namespace terrace {

// Every tier counts `tokens` but those with an error; `cached` are of the tiers named.
struct FixedMeter : PromptMeter {
  explicit FixedMeter(size_t tokens_of_all = 10, std::map<std::string, size_t> cached_of = {})
      : tokens(tokens_of_all), cached(std::move(cached_of)) {}

  StatusOr<size_t> Tokens(const TierView& tier) const override {
    const auto found = errors.find(tier.name);
    return found == errors.end() ? StatusOr<size_t>(tokens) : found->second;
  }
  StatusOr<size_t> CachedTokens(const TierView& tier) const override {
    const auto found = cached.find(tier.name);
    return found == cached.end() ? size_t{0} : found->second;
  }

  size_t tokens;
  std::map<std::string, size_t> cached;
  std::map<std::string, Status> errors = {};
};

// Tiers with one ready replica each.
inline ClusterView ReadyTiers(const std::vector<std::string>& names, uint32_t context_length = 1000) {
  ClusterView view;
  for (const std::string& name : names) {
    TierView& tier = view.tiers.emplace_back();
    tier.name = name;
    tier.context_length = context_length;
    tier.ready.emplace_back();
  }
  return view;
}

// The plan, which there must be.
inline TierPlan PlanOf(const TierPolicy& policy, const RequestPtr& request, const ClusterView& view,
                       const PromptMeter& meter = FixedMeter()) {
  auto plan = policy.Plan({*request, view, meter});
  CHECK(plan.ok(), Message(plan.status()));
  return *std::move(plan);
}

}  // namespace terrace
