// How far a model's next-token distributions are from a baseline's, on the same tokens. Used by one thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace terrace {

struct Divergence {
  uint64_t positions = 0;
  // Of the Kullback-Leibler divergence KL(baseline || candidate), nats.
  double mean_kl = 0, p99_kl = 0, max_kl = 0;
  double flip_rate = 0;  // share of the positions whose likeliest token is another one
  // exp of the mean -ln of the probability of the token that follows.
  double candidate_perplexity = 1, baseline_perplexity = 1;
};

class DivergenceMeter {
 public:
  // One position: both models' logits [vocab_size], and the token that follows it. INTERNAL, reason
  // numeric_error, when one is not finite; then nothing is counted.
  Status Add(std::span<const float> candidate, std::span<const float> baseline, int32_t next);

  // Of all positions so far; the order in which they came does not matter but for rounding.
  Divergence Finish() const;

 private:
  std::vector<double> divergences_;  // by position
  uint64_t flips_ = 0;
  double candidate_surprise_ = 0, baseline_surprise_ = 0;  // sums, nats
};

}  // namespace terrace
