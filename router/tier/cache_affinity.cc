#include "router/tier/cache_affinity.h"

#include <algorithm>

#include "router/tier/request_cost.h"

namespace terrace {
namespace {

StatusOr<double> UncachedUsd(const PlanQuery& query, const TierView& tier, const TierPrice& price) {
  ASSIGN_OR_RETURN(const size_t prompt, query.prompt.Tokens(tier));
  ASSIGN_OR_RETURN(const size_t cached, query.prompt.CachedTokens(tier));
  return price.usd_per_million_prompt_tokens * static_cast<double>(prompt - std::min(prompt, cached)) / 1e6;
}

bool IsWithinLimits(const PlanQuery& query, size_t tier, const TierPrice& price) {
  if (!query.request.has_limits()) return true;
  const StatusOr<RequestCost> cost = CostAt(query, tier, price);
  return cost.ok() && FitsLimits(query.request, *cost);
}

}  // namespace

StatusOr<size_t> VetoDowngrade(const PlanQuery& query, std::span<const TierPrice> prices, size_t chosen,
                               std::span<const size_t> larger) {
  const auto& tiers = query.view.tiers;
  size_t best = chosen;
  ASSIGN_OR_RETURN(double least, UncachedUsd(query, tiers[chosen], prices[chosen]));
  for (const size_t tier : larger) {
    if (tiers[tier].ready_replicas() == 0) continue;
    const StatusOr<double> usd = UncachedUsd(query, tiers[tier], prices[tier]);
    if (!usd.ok() || *usd >= least || !IsWithinLimits(query, tier, prices[tier])) continue;
    best = tier;
    least = *usd;
  }
  return best;
}

}  // namespace terrace
