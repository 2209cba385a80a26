// Runs one step of a plan on the model. Two implementations: ModelRunner (worker/engine/model_runner.h) and
// the fake of the scheduler's tests.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/status.h"
#include "worker/engine/sequence.h"
#include "worker/kv/block_allocator.h"

namespace terrace {

// One sequence's part of a step. Borrowed for the step from the Scheduler's sequences.
struct PlannedSequence {
  uint64_t id = 0;
  std::span<const int32_t> tokens;  // to compute, from first_position on
  uint32_t first_position = 0;
  std::span<const BlockId> blocks;
  bool sample = false;  // the last token's logits choose the next token
  bool score = false;   // report scores of the prompt tokens that follow the computed ones
  std::span<const int32_t>
      score_targets;  // with `score`: the token after each computed one (may be one shorter)
  const SamplingParams* sampling = nullptr;
  const TokenCounts* counts = nullptr;
  uint64_t sample_index = 0;  // tokens of the answer so far
  uint32_t top_logprobs = 0;
};

struct StepPlan {
  std::vector<PlannedSequence> sequences;
  bool empty() const { return sequences.empty(); }
};

struct SequenceOutput {
  Status error;  // of this sequence only (numeric_error)
  std::optional<SampledToken> token;
  std::vector<SampledToken> scores;
};

struct StepResult {
  std::vector<SequenceOutput> outputs;  // as plan.sequences
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual StepResult Run(const StepPlan& plan) = 0;
};

}  // namespace terrace
