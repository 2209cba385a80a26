// Runs one step of a plan on the model. Two implementations: ModelRunner (worker/engine/model_runner.h) and
// FakeExecutor, of the scheduler's tests and simulations.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/status.h"
#include "worker/engine/sequence.h"
#include "worker/kv/block_table.h"

namespace terrace {

// One sequence's part of a step. Borrowed for the step from the Scheduler's sequences.
struct PlannedSequence {
  uint64_t id = 0;
  std::span<const int32_t> context;  // tokens [0, first_position): their keys and values are in `blocks`
  std::span<const int32_t> tokens;   // to compute, from first_position on
  uint32_t first_position = 0;
  std::span<const BlockId> blocks;
  bool is_decode = false;  // `tokens` is the last token of the answer so far
  bool sample = false;     // the last token's logits choose the next token
  bool score = false;      // report scores of the prompt tokens that follow the computed ones
  std::span<const int32_t>
      score_targets;  // with `score`: the token after each computed one (may be one shorter)
  const SamplingParams* sampling = nullptr;
  const TokenCounts* counts = nullptr;
  uint64_t sample_index = 0;  // tokens of the answer so far
  uint32_t top_logprobs = 0;
};

// A block's contents moved before anything is computed. Host blocks are those of the swap memory.
struct BlockTransfer {
  enum class Kind : uint8_t {
    kCopyRows,  // the first `rows` positions of block `from` to block `to`
    kToHost,    // block `from` to host block `to`
    kFromHost,  // host block `from` to block `to`
  };
  Kind kind = Kind::kCopyRows;
  BlockId from = 0, to = 0;
  uint32_t rows = 0;
};

struct StepPlan {
  std::vector<BlockTransfer>
      transfers;  // one after the other: a later one may overwrite what an earlier one read
  std::vector<PlannedSequence> sequences;
  bool empty() const { return transfers.empty() && sequences.empty(); }
};

struct SequenceOutput {
  Status error;  // of this sequence only (numeric_error)
  std::optional<SampledToken> token;
  std::vector<SampledToken> scores;
};

struct StepResult {
  std::vector<SequenceOutput> outputs;  // as plan.sequences
  double transfer_seconds = 0;          // of the time the step took
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual StepResult Run(const StepPlan& plan) = 0;
};

}  // namespace terrace
