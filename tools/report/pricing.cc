#include "tools/report/pricing.h"

#include <algorithm>

#include "base/status.h"
#include "router/tier/gate.h"
#include "router/tier/price.h"

namespace terrace {
namespace {

constexpr double kSecondsPerHour = 3600;

double UsdPerMillion(double usd_per_hour, double tokens_per_second) {
  return usd_per_hour / kSecondsPerHour / tokens_per_second * 1e6;
}

bool IsKept(const TierAnswer& answer, double min_mean_logprob) {
  return Gate(min_mean_logprob)
      .Accepts({.tokens = static_cast<uint32_t>(std::min<uint64_t>(answer.completion_tokens, UINT32_MAX)),
                .mean_logprob = answer.mean_logprob});
}

TierPrice AsTierPrice(const TokenPrice& price) {
  return {.usd_per_million_prompt_tokens = price.usd_per_million_prompt_tokens,
          .usd_per_million_completion_tokens = price.usd_per_million_completion_tokens};
}

}  // namespace

TokenPrice PriceOfTokens(double usd_per_hour, std::span<const BatchSpeed> speeds) {
  CHECK(!speeds.empty());
  const BatchSpeed& best = *std::ranges::max_element(speeds, {}, &BatchSpeed::decode_tokens_per_second);
  CHECK(best.prefill_tokens_per_second > 0 && best.decode_tokens_per_second > 0);
  return {.usd_per_million_prompt_tokens = UsdPerMillion(usd_per_hour, best.prefill_tokens_per_second),
          .usd_per_million_completion_tokens = UsdPerMillion(usd_per_hour, best.decode_tokens_per_second)};
}

PricedAnswers CombineAnswers(std::span<const CascadeTier> tiers, double min_mean_logprob) {
  CHECK(!tiers.empty());
  const size_t rows = tiers.front().answers.size();
  PricedAnswers out;
  double usd = 0;
  for (size_t row = 0; row < rows; ++row) {
    size_t tier = 0;
    for (;; ++tier) {
      CHECK(tiers[tier].answers.size() == rows);
      const TierAnswer& answer = tiers[tier].answers[row];
      usd += PriceUsd(AsTierPrice(tiers[tier].price), answer.prompt_tokens, answer.completion_tokens);
      if (tier + 1 == tiers.size() || IsKept(answer, min_mean_logprob)) break;
    }
    out.tiers.push_back(tier);
    out.prompt_tokens += tiers[tier].answers[row].prompt_tokens;
    out.completion_tokens += tiers[tier].answers[row].completion_tokens;
  }
  const auto tokens = static_cast<double>(out.prompt_tokens + out.completion_tokens);
  if (tiers.size() == 1) out.price.tokens = tiers.front().price;
  if (tokens > 0) out.price.usd_per_million_tokens = usd / tokens * 1e6;
  if (rows > 0) out.price.usd_per_thousand_answers = usd / static_cast<double>(rows) * 1e3;
  return out;
}

}  // namespace terrace
