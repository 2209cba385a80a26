// What a request costs at one tier: US dollars at the most, and the seconds that its answer is expected to
// take. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/status.h"
#include "router/tier/price.h"
#include "router/tier/tier_policy.h"

namespace terrace {

inline constexpr char kBudgetTooSmall[] = "budget_too_small";  // the reason of a refusal
inline constexpr uint32_t kExpectedAnswerTokens = 256;         // of a request that sets no max_tokens

struct RequestCost {
  double usd = 0, seconds = 0;

  friend RequestCost operator+(const RequestCost& a, const RequestCost& b) {
    return {a.usd + b.usd, a.seconds + b.seconds};
  }
};

// Of the whole prompt and of all answers, each as long as the request lets it be. Of a request that sets no
// max_tokens an answer is taken to have `expected_answer_tokens`, or to fill the context. Errors of
// PromptMeter::Tokens, as of the next two.
StatusOr<double> MostUsd(const PlanQuery& query, const TierView& tier, const TierPrice& price,
                         std::optional<uint32_t> expected_answer_tokens = {});

// Until the last token of an answer that begins now at `tier` (an index): the time to the first one and that
// of the others, by PlanQuery::speeds. It is taken to have max_tokens, or `expected_answer_tokens`. Answers
// of one request come side by side. What was not measured lately counts nothing: else a tier that is asked
// by nobody would not be measured either.
StatusOr<double> ExpectedSeconds(const PlanQuery& query, size_t tier, uint32_t expected_answer_tokens);

// Both, with the longest answer that the context holds for the price.
StatusOr<RequestCost> CostAt(const PlanQuery& query, size_t tier, const TierPrice& price,
                             uint32_t expected_answer_tokens = kExpectedAnswerTokens);

// The request's own limits.
bool FitsPrice(const Request& request, const RequestCost& cost);
bool FitsLimits(const Request& request, const RequestCost& cost);
// INVALID_ARGUMENT, kBudgetTooSmall: none of `costs`, of which there is one, fits them.
Status LimitsTooSmall(const Request& request, std::span<const RequestCost> costs);

}  // namespace terrace
