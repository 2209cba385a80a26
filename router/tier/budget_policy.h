// The policy `budget`: of the tiers whose price and time fit, the one whose answer is expected to be best.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "router/tier/calibration.h"
#include "router/tier/price.h"
#include "router/tier/request_cost.h"
#include "router/tier/tier_policy.h"

namespace terrace {

struct BudgetCandidate {
  size_t tier = 0;              // index into ClusterView::tiers
  double expected_quality = 0;  // say, the share of its answers that are right
};

struct BudgetOptions {
  std::vector<BudgetCandidate> candidates = {};             // at least one
  std::optional<double> max_usd = {};                       // of a request, beside its own
  std::optional<double> max_seconds = {};                   // expected of an answer, beside the request's own
  uint32_t expected_answer_tokens = kExpectedAnswerTokens;  // of a request that sets no max_tokens
  bool refuses = false;  // what nothing fits; else the cheapest one answers
  // A classifier: for this very prompt, how likely a tier's answer is good, of those it has a scorer for.
  std::optional<Calibration> calibration = {};
};

// The highest expected quality among the candidates whose MostUsd, with expected_answer_tokens, is within
// `max_usd` and, with the longest possible answer, within the request's own limit, and whose ExpectedSeconds
// are within `max_seconds` and the request's own; of equal ones the cheapest. Where none is, the cheapest
// within the request's own limits, unless the policy `refuses`. Candidates
// without a ready replica come after all that have one; those that cannot have the prompt (PromptMeter) are
// none. While the calibration is stale the candidates' own figures do.
//
// Its errors: the first PromptMeter's, when no candidate is left; else INVALID_ARGUMENT (budget_too_small).
//
// `tiers` and `prices` are of ClusterView::tiers, in order. Errors of FindCalibratedTiers, and
// FAILED_PRECONDITION for a calibration that is no classifier of the prompt alone.
StatusOr<std::unique_ptr<TierPolicy>> MakeBudgetPolicy(BudgetOptions options,
                                                       std::span<const std::string> tiers,
                                                       std::vector<TierPrice> prices);

}  // namespace terrace
