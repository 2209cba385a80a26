// How the next token of one sequence is chosen. A value; validated once at the edge.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/status.h"

namespace terrace {

struct SamplingParams {
  float temperature = 1;         // 0: greedy
  int32_t top_k = 0;             // 0: off
  float top_p = 1;               // 1: off
  float min_p = 0;               // 0: off
  float repetition_penalty = 1;  // over prompt and answer; 1: off (CTRL, Keskar et al. 2019)
  float presence_penalty = 0;    // over the answer, as OpenAI's API defines them
  float frequency_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias = {};
  uint64_t seed = 0;
};

// Whether what was said before changes what is said next, so that somebody has to count it.
inline bool HasPenalties(const SamplingParams& params) {
  return params.repetition_penalty != 1 || params.presence_penalty != 0 || params.frequency_penalty != 0;
}

// The ranges of proto/terrace/v1/sampling.proto; token ids below `vocab_size`. INVALID_ARGUMENT, reason
// invalid_value, names the field, the value and the range.
Status ValidateSamplingParams(const SamplingParams& params, uint32_t vocab_size);

}  // namespace terrace
