// Flags that `generate` and `chat` share, and what they print about an answer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json_fwd.h"
#include "proto/terrace/v1/inference.pb.h"
#include "tools/cli/answerer.h"

namespace terrace {

struct RequestOptions {
  uint32_t max_tokens = 0;  // 0: as many as the context holds
  float temperature = 0;    // greedy
  std::optional<int32_t> top_k;
  std::optional<float> top_p, min_p;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  bool ignore_eos = false;

  void ApplyTo(v1::GenerateRequest& request) const;
};

// "tier small (asked nano, small), 40 + 8 tokens, first token 12 ms, 310 tokens/s, 0.153 µUSD"; without a
// price, none
std::string DescribeFinished(const v1::GenerateFinished& finished);
// Tokens of the answer per second of the whole request.
double TokensPerSecond(const v1::GenerateFinished& finished);
// The answers to one request as if they were one: usage, attempts and price summed, the longest time.
v1::GenerateFinished TotalOf(const std::vector<Answer>& answers);
// Text, tokens, usage, finish_reason, tier, attempts, price and timing; log-probabilities when asked for.
Json AnswerToJson(const Answer& answer);
// One answer as above; several as {"answers": [...]} beside the sums of usage and price.
Json AnswersToJson(const std::vector<Answer>& answers);

}  // namespace terrace
