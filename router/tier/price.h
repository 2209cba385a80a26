// What tokens cost. Values; pure.
#pragma once

#include "router/request/answer.h"

namespace terrace {

struct TierPrice {
  double usd_per_million_prompt_tokens = 0;
  double usd_per_million_completion_tokens = 0;
};

// Cached prompt tokens cost what other prompt tokens do.
inline double PriceUsd(const TierPrice& price, const TokenUsage& usage) {
  return (price.usd_per_million_prompt_tokens * usage.prompt_tokens +
          price.usd_per_million_completion_tokens * usage.completion_tokens) /
         1e6;
}

}  // namespace terrace
