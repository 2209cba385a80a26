// What answers cost on a machine that costs so much an hour. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tools/report/technique_row.h"

namespace terrace {

// At the batch that decodes fastest (the first of equals), the machine used by nothing else and never idle.
// `speeds` has one at least (CHECK), all above 0.
TokenPrice PriceOfTokens(double usd_per_hour, std::span<const BatchSpeed> speeds);

// What one tier said to one row.
struct TierAnswer {
  uint64_t prompt_tokens = 0, completion_tokens = 0;
  double mean_logprob = 0;  // nats, of the completion's tokens
};

struct PricedAnswers {
  std::vector<size_t> tiers = {};                     // [rows] whose answer was given
  uint64_t prompt_tokens = 0, completion_tokens = 0;  // of those answers
  AnswersPrice price = {};                            // of all that was asked
};

// A tier's answers are [rows], of all tiers alike (CHECK).
struct CascadeTier {
  TokenPrice price = {};
  std::span<const TierAnswer> answers = {};
};

// Asks the tiers in order and keeps the first answer that the router's gate accepts (router/tier/gate.h: a
// mean log-probability above the threshold, of at least one token), at the latest the last tier's. Every tier
// that was asked is paid for. With one tier no threshold matters.
PricedAnswers CombineAnswers(std::span<const CascadeTier> tiers, double min_mean_logprob);

}  // namespace terrace
