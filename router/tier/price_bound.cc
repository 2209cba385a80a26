#include "router/tier/price_bound.h"

#include <algorithm>

namespace terrace {
namespace {

size_t MostAnswerTokens(const Request& request, const TierView& tier, size_t prompt_tokens,
                        std::optional<uint32_t> expected_answer_tokens) {
  if (request.is_prompt_only()) return 0;
  const size_t context = tier.context_length == 0 ? Request::kMaxMaxTokens : tier.context_length;
  const size_t room = context - std::min(context, prompt_tokens);
  if (request.max_tokens() > 0) return std::min<size_t>(request.max_tokens(), room);
  return std::min<size_t>(expected_answer_tokens.value_or(Request::kMaxMaxTokens), room);
}

}  // namespace

StatusOr<double> MostUsd(const PlanQuery& query, const TierView& tier, const TierPrice& price,
                         std::optional<uint32_t> expected_answer_tokens) {
  ASSIGN_OR_RETURN(const size_t prompt, query.prompt.Tokens(tier));
  const size_t answer =
      MostAnswerTokens(query.request, tier, prompt, expected_answer_tokens) * query.request.draws();
  return (price.usd_per_million_prompt_tokens * static_cast<double>(prompt) +
          price.usd_per_million_completion_tokens * static_cast<double>(answer)) /
         1e6;
}

}  // namespace terrace
