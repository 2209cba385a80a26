// What tokens cost. Values; pure.
#pragma once

#include <cstdint>

#include "router/request/answer.h"

namespace terrace {

struct TierPrice {
  double usd_per_million_prompt_tokens = 0;
  double usd_per_million_completion_tokens = 0;
};

inline double PriceUsd(const TierPrice& price, uint64_t prompt_tokens, uint64_t completion_tokens) {
  return (price.usd_per_million_prompt_tokens * static_cast<double>(prompt_tokens) +
          price.usd_per_million_completion_tokens * static_cast<double>(completion_tokens)) /
         1e6;
}

// Cached prompt tokens cost what other prompt tokens do.
inline double PriceUsd(const TierPrice& price, const TokenUsage& usage) {
  return PriceUsd(price, usage.prompt_tokens, usage.completion_tokens);
}

}  // namespace terrace
