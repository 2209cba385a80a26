// An Executor without a model, for tests: token i of an answer is AnswerToken(seed, i), whatever shares the
// step. It also plays the KV cache: every computed token is written to its block, and the tokens before a
// part are read back and compared with a copy of its own, so that a block given to two sequences, a gap or a
// repeated position is a CHECK.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <utility>

#include "base/rng.h"
#include "worker/engine/executor.h"

namespace terrace {

class FakeExecutor : public Executor {
 public:
  struct Options {
    uint32_t vocab_size = 1000;
    uint32_t block_tokens = 16;
    size_t checked_positions = 256;                              // how many before a part are read back
    std::function<void(const StepPlan&)> before_step = nullptr;  // may block
    std::function<Status(const PlannedSequence&)> fail_sequence = nullptr;  // an error for that one
  };

  explicit FakeExecutor(Options options) : options_(std::move(options)) {}

  static int32_t AnswerToken(uint64_t seed, uint64_t index, uint32_t vocab_size) {
    return static_cast<int32_t>(RandomBits(seed, index) % vocab_size);
  }

  StepResult Run(const StepPlan& plan) override {
    if (options_.before_step) options_.before_step(plan);
    StepResult result;
    for (const PlannedSequence& part : plan.sequences) result.outputs.push_back(RunPart(part));
    return result;
  }

 private:
  SequenceOutput RunPart(const PlannedSequence& part) {
    std::vector<int32_t>& history = histories_[part.id];
    CHECK(part.first_position == history.size() && !part.tokens.empty());
    const size_t first_checked = history.size() - std::min(history.size(), options_.checked_positions);
    for (size_t i = first_checked; i < history.size(); ++i)
      CHECK(Cell(part, i) == history[i], "position ", i);
    for (int32_t token : part.tokens) {
      Cell(part, history.size()) = token;
      history.push_back(token);
    }
    SequenceOutput output;
    if (options_.fail_sequence) output.error = options_.fail_sequence(part);
    if (!output.error.ok()) return output;
    for (int32_t target : part.score_targets)
      output.scores.push_back({.token = target, .logprob = -1, .top = {}});
    if (part.sample) {
      const int32_t token = AnswerToken(part.sampling->seed, part.sample_index, options_.vocab_size);
      output.token = SampledToken{.token = token, .logprob = -1, .top = {}};
    }
    return output;
  }

  int32_t& Cell(const PlannedSequence& part, size_t position) {
    const size_t block = position / options_.block_tokens;
    CHECK(block < part.blocks.size());
    return cells_[{part.blocks[block], position % options_.block_tokens}];
  }

  const Options options_;
  std::map<uint64_t, std::vector<int32_t>> histories_;  // by sequence id
  std::map<std::pair<BlockId, size_t>, int32_t> cells_;
};

}  // namespace terrace
