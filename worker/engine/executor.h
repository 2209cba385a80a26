// Runs one step of a plan on the model. Implementations: ModelRunner (worker/engine/model_runner.h), those of
// devices (worker/engine/device_backend.h), GroupExecutor, which leads the ranks of a group, and
// FakeExecutor, of the scheduler's tests and simulations.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "worker/engine/sequence.h"
#include "worker/kv/block_table.h"

namespace terrace {

// One sequence's part of a step. Borrowed for the step from the Scheduler's sequences.
struct PlannedSequence {
  uint64_t id = 0;
  std::span<const int32_t> context = {};  // tokens [0, first_position): their keys and values are in `blocks`
  std::span<const int32_t> tokens =
      {};  // to compute, from first_position on; the last `proposed` are guesses
  uint32_t first_position = 0;
  std::span<const BlockId> blocks = {};
  bool is_decode = false;  // `tokens` begins with the last token of the answer so far
  // A second guess of how the sequence of an earlier part goes on: of the same id, in blocks of its own from
  // the last known token on, which it computes too.
  bool is_branch = false;
  bool sample = false;  // the logits behind the last known token choose the next one
  // With `sample`: so many tokens behind the last known one are proposed, for ChooseTokens to accept or not.
  uint32_t proposed = 0;
  bool score = false;  // report scores of the prompt tokens that follow the computed ones
  std::span<const int32_t> score_targets =
      {};  // with `score`: the token after each computed one (may be one shorter)
  const SamplingParams* sampling = nullptr;
  const TokenCounts* counts = nullptr;
  uint64_t sample_index = 0;  // tokens of the answer so far
  uint32_t top_logprobs = 0;
  bool signals = false;
};

// Logits are taken of the last so many tokens of a part: of the last known and the proposed ones to choose
// from, of all to score.
inline uint32_t WantedLogits(const PlannedSequence& planned) {
  if (!planned.score_targets.empty()) return static_cast<uint32_t>(planned.tokens.size());
  return planned.sample ? 1 + planned.proposed : 0;
}

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
  Status error;  // of this sequence only (numeric_error); what was chosen before it holds
  // With `sample`: the proposed tokens that were accepted, then the one that the model chose itself.
  std::vector<SampledToken> tokens = {};
  std::vector<SampledToken> scores = {};
};

struct StepResult {
  std::vector<SequenceOutput> outputs;  // as plan.sequences
  double transfer_seconds = 0;          // of the time the step took
  // The step also prepared what others like it reuse, such as a graph of a device: its time says nothing of
  // theirs.
  bool is_first_of_its_kind = false;
  // The device, or another rank of the model's group, is lost, and with it what it holds: nothing of the step
  // counts, and no other one may be run.
  Status device_error = {};
};

// Chooses a token from the logits behind the last known token of a part (row 0), or behind one of the
// proposed (row i: the i-th of them). `counts` has all tokens up to there where there are penalties, `index`
// is that of the token in the answer.
using ChooseToken =
    std::function<StatusOr<SampledToken>(uint32_t row, const TokenCounts& counts, uint64_t index)>;

// The tokens and the error of a part that samples. Goes from row to row while what is chosen is what was
// proposed: so the result is that of choosing one token a step, whatever was proposed. Pure but for `choose`.
SequenceOutput ChooseTokens(const PlannedSequence& part, const ChooseToken& choose);

class Executor {
 public:
  virtual ~Executor() = default;
  virtual StepResult Run(const StepPlan& plan) = 0;

  // For one that has to look after something between steps: Idle is called on Run's thread when there is
  // nothing to run, so often at least. Its error is as StepResult::device_error.
  virtual std::optional<Duration> idle_period() const { return std::nullopt; }
  virtual Status Idle() { return {}; }
};

}  // namespace terrace
