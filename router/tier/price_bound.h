// The most that a request may cost at one tier. Pure.
#pragma once

#include <cstdint>
#include <optional>

#include "base/status.h"
#include "router/tier/price.h"
#include "router/tier/tier_policy.h"

namespace terrace {

// US dollars of the whole prompt and of all answers, each as long as the request lets it be. Of a request
// that sets no max_tokens an answer is taken to have `expected_answer_tokens`, or to fill the context. Errors
// of PromptMeter::Tokens.
StatusOr<double> MostUsd(const PlanQuery& query, const TierView& tier, const TierPrice& price,
                         std::optional<uint32_t> expected_answer_tokens = {});

}  // namespace terrace
