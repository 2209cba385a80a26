// Chooses the next token from a row of logits: a pure function of the logits, the parameters, the tokens so
// far and (seed, index). Order: logit bias, repetition penalty, presence and frequency penalty, temperature,
// top-k, top-p, min-p, then one uniform draw by inverse cumulative probability over the kept tokens in
// falling order of probability (ties: lower id first). Greedy takes the largest adjusted logit (ties: lower
// id first).
//
// top-k keeps the k most likely tokens. top-p keeps the shortest run of the most likely of those whose
// probabilities, relative to all that top-k kept, sum to at least top_p. min-p keeps those at least min_p
// times as likely as the most likely one. The most likely token is always kept.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "kernels/op_table.h"
#include "worker/sample/sampling_params.h"

namespace terrace {

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;  // nats, of the model's own distribution (softmax of the raw logits)
};

struct SampledToken {
  int32_t token = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top;  // most likely first; ties: lower id first
  // How sure the model was, in nats, of its own distribution as well; 0 unless they were asked for.
  float margin = 0;  // log-probability of the most likely token less that of the second; infinite without one
  float entropy = 0;
};

// What is told of a token beside its log-probability.
struct TokenReport {
  uint32_t top = 0;      // so many alternatives, 0 to 20
  bool signals = false;  // margin and entropy
};

// Counts of the tokens of one sequence, kept up to date by its owner, for the penalties.
class TokenCounts {
 public:
  void AddPrompt(std::span<const int32_t> tokens);  // no penalty but that of repetition needs them
  void AddGenerated(int32_t token);
  // Every token of the prompt or the answer, with how often the answer has it.
  struct Entry {
    int32_t token = 0;
    uint32_t generated = 0;
  };
  std::span<const Entry> entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;  // sorted by token
};

// Scratch memory of one thread; the result does not depend on earlier calls.
class Sampler {
 public:
  explicit Sampler(const OpTable& ops = CpuOps()) : ops_(&ops) {}

  // `index` is the number of tokens of the answer before this one: the counter of the draw. INTERNAL, reason
  // numeric_error, when a logit is NaN or +infinity or no logit is finite; a token whose logit is -infinity
  // is never chosen. What is reported does not change what is chosen.
  StatusOr<SampledToken> Sample(std::span<const float> logits, const SamplingParams& params,
                                const TokenCounts& counts, uint64_t index, const TokenReport& report);

  // The log-probability of a given token (prompt scores). Same errors.
  StatusOr<SampledToken> Score(std::span<const float> logits, int32_t token, const TokenReport& report);

 private:
  // Of a row as the model gave it.
  struct RowSummary {
    double log_sum = 0;  // ln(sum exp(logits))
    float margin = 0, entropy = 0;
  };

  StatusOr<RowSummary> Summarize(std::span<const float> logits, bool signals);
  std::span<const float> Adjust(std::span<const float> logits, const SamplingParams& params,
                                const TokenCounts& counts);
  int32_t Draw(std::span<const float> logits, const SamplingParams& params, uint64_t index);
  SampledToken Describe(std::span<const float> logits, const RowSummary& row, int32_t token, uint32_t top);

  const OpTable* ops_;
  std::vector<float> adjusted_;  // logits after bias and penalties
  std::vector<float> weights_;   // their probabilities, relative to the most likely token
  std::vector<int32_t> order_;   // token ids
};

}  // namespace terrace
