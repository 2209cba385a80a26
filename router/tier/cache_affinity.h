// When the prompt's cache outweighs a smaller tier. Pure.
#pragma once

#include <cstddef>
#include <span>

#include "base/status.h"
#include "router/tier/price.h"
#include "router/tier/tier_policy.h"

namespace terrace {

// The tier to ask instead of `chosen`: the one of `larger` that has so much of the prompt cached that what is
// left to compute costs less, at its price of prompt tokens, than at any other of them and at `chosen`; else
// `chosen`. A tier that is not ready, cannot have the prompt, or does not fit the request's own limits is
// none of them. `prices` are of all tiers; errors are the PromptMeter's of `chosen`.
StatusOr<size_t> VetoDowngrade(const PlanQuery& query, std::span<const TierPrice> prices, size_t chosen,
                               std::span<const size_t> larger);

}  // namespace terrace
