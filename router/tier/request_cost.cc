#include "router/tier/request_cost.h"

#include <algorithm>
#include <limits>

#include "router/request/param.h"

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
  return PriceUsd(price, prompt, answer);
}

StatusOr<double> ExpectedSeconds(const PlanQuery& query, size_t tier, uint32_t expected_answer_tokens) {
  const TierView& view = query.view.tiers[tier];
  ASSIGN_OR_RETURN(const size_t prompt, query.prompt.Tokens(view));
  const size_t answer = MostAnswerTokens(query.request, view, prompt, expected_answer_tokens);
  const size_t others = answer - std::min<size_t>(answer, 1);
  const AnswerSpeed speed = tier < query.speeds.size() ? query.speeds[tier] : AnswerSpeed();
  return speed.first_token_seconds.value_or(0) +
         static_cast<double>(others) * speed.seconds_per_token.value_or(0);
}

StatusOr<RequestCost> CostAt(const PlanQuery& query, size_t tier, const TierPrice& price,
                             uint32_t expected_answer_tokens) {
  RequestCost cost;
  ASSIGN_OR_RETURN(cost.usd, MostUsd(query, query.view.tiers[tier], price));
  ASSIGN_OR_RETURN(cost.seconds, ExpectedSeconds(query, tier, expected_answer_tokens));
  return cost;
}

bool FitsPrice(const Request& request, const RequestCost& cost) {
  return !request.max_usd().has_value() || cost.usd <= *request.max_usd();
}

bool FitsLimits(const Request& request, const RequestCost& cost) {
  const bool is_in_time = !request.max_seconds().has_value() || cost.seconds <= *request.max_seconds();
  return is_in_time && FitsPrice(request, cost);
}

Status LimitsTooSmall(const Request& request, std::span<const RequestCost> costs) {
  constexpr double kNone = std::numeric_limits<double>::infinity();
  double usd = kNone, seconds = kNone;  // the least, and of what can be paid
  for (const RequestCost& cost : costs) {
    usd = std::min(usd, cost.usd);
    if (FitsPrice(request, cost)) seconds = std::min(seconds, cost.seconds);
  }
  if (seconds == kNone) {
    return ParamError(kBudgetTooSmall, MaxUsdParam(request.api()), "the request may cost ", usd,
                      " USD at the least, the limit is ", *request.max_usd());
  }
  return ParamError(kBudgetTooSmall, MaxSecondsParam(request.api()), "the answer is expected to take ",
                    seconds, " seconds at the least, the limit is ", *request.max_seconds());
}

}  // namespace terrace
