// An Executor without a model, for tests and simulations of scheduling: token i of an answer is
// AnswerToken(seed, i), whatever shares the step, with kMargin and kEntropy where signals are asked for, and
// a step takes as long as a StepTimeModel says.
//
// It also plays the KV cache: every computed token is written to its block, transfers move them, and the
// tokens before a part are read back and compared with the sequence's own, so that a block given to two
// sequences, a wrong prefix, a lost copy or a gap is a CHECK. One thread.
#pragma once

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "worker/engine/executor.h"

namespace terrace {

// How long a step takes: a line through what real steps take.
struct StepTimeModel {
  double seconds_per_step = 0;
  double seconds_per_token = 0;     // computed
  double seconds_per_position = 0;  // read by attention: decodes feel their context
  double seconds_per_transfer = 0;

  double StepSeconds(const StepPlan& plan) const {
    double seconds = seconds_per_step + seconds_per_transfer * static_cast<double>(plan.transfers.size());
    for (const PlannedSequence& part : plan.sequences) {
      const auto tokens = static_cast<double>(part.tokens.size());
      seconds +=
          seconds_per_token * tokens + seconds_per_position * tokens * (part.first_position + tokens / 2);
    }
    return seconds;
  }
};

class FakeExecutor : public Executor {
 public:
  struct Options {
    uint32_t vocab_size = 1000;
    uint32_t block_tokens = 16;
    // How many positions before a part are read back; 0: the KV cache is not played at all.
    size_t checked_positions = 256;
    std::function<void(const StepPlan&)> before_step = nullptr;  // may block
    // An error for that one. Asked for every token that is chosen, with its index as sample_index, and once
    // for a part that samples none.
    std::function<Status(const PlannedSequence&)> fail_sequence = nullptr;
    std::function<Status()> lose_device =
        nullptr;  // asked at the beginning of each step; an error is its end
    std::function<bool(const StepPlan&)> is_first_of_its_kind = nullptr;  // as StepResult has it
    // The alternatives to a token, where they are asked for; absent: none are told.
    std::function<std::vector<TokenLogprob>(int32_t token)> top = nullptr;
    float logprob = -1;  // of every token that is chosen
    StepTimeModel time = {};
    std::function<void(double seconds)> on_step_time = nullptr;  // such as FakeClock::Advance
  };

  static constexpr float kMargin = 1.5f, kEntropy = 0.25f;

  explicit FakeExecutor(Options options) : options_(std::move(options)) {}

  static int32_t AnswerToken(uint64_t seed, uint64_t index, uint32_t vocab_size) {
    return static_cast<int32_t>(RandomBits(seed, index) % vocab_size);
  }

  StepResult Run(const StepPlan& plan) override {
    if (options_.before_step) options_.before_step(plan);
    StepResult result;
    CHECK(!is_lost_, "a step on a lost device");
    if (options_.lose_device) result.device_error = options_.lose_device();
    is_lost_ = !result.device_error.ok();
    if (is_lost_) return result;
    if (options_.checked_positions > 0) {
      for (const BlockTransfer& transfer : plan.transfers) Move(transfer);
      for (const PlannedSequence& part : plan.sequences) Write(part);
      for (const PlannedSequence& part : plan.sequences) Check(part);
    }
    for (const PlannedSequence& part : plan.sequences) result.outputs.push_back(Answer(part));
    if (options_.is_first_of_its_kind) result.is_first_of_its_kind = options_.is_first_of_its_kind(plan);
    if (options_.on_step_time) options_.on_step_time(options_.time.StepSeconds(plan));
    result.transfer_seconds = options_.time.seconds_per_transfer * static_cast<double>(plan.transfers.size());
    return result;
  }

 private:
  static constexpr int32_t kNothing = -1;
  using Memory = std::vector<int32_t>;  // [blocks, block_tokens]

  int32_t* Block(Memory& memory, BlockId block) {
    CHECK(block >= 0);
    const size_t end = (static_cast<size_t>(block) + 1) * options_.block_tokens;
    if (memory.size() < end) memory.resize(end, kNothing);
    return memory.data() + end - options_.block_tokens;
  }

  void Move(const BlockTransfer& transfer) {
    Memory& from = transfer.kind == BlockTransfer::Kind::kFromHost ? host_ : device_;
    Memory& to = transfer.kind == BlockTransfer::Kind::kToHost ? host_ : device_;
    const bool is_part = transfer.kind == BlockTransfer::Kind::kCopyRows;
    CHECK(!is_part ||
          (transfer.rows > 0 && transfer.rows < options_.block_tokens && transfer.from != transfer.to));
    Block(to, transfer.to), Block(from, transfer.from);  // neither moves any more
    std::fill_n(Block(to, transfer.to), options_.block_tokens, kNothing);
    std::copy_n(Block(from, transfer.from), is_part ? transfer.rows : options_.block_tokens,
                Block(to, transfer.to));
  }

  int32_t& Cell(const PlannedSequence& part, size_t position) {
    CHECK(position / options_.block_tokens < part.blocks.size());
    return Block(device_, part.blocks[position / options_.block_tokens])[position % options_.block_tokens];
  }

  void Write(const PlannedSequence& part) {
    CHECK(part.first_position == part.context.size() && !part.tokens.empty());
    for (size_t i = 0; i < part.tokens.size(); ++i) Cell(part, part.first_position + i) = part.tokens[i];
  }

  // After every part has written: nobody overwrote what another reads.
  void Check(const PlannedSequence& part) {
    const size_t count = std::min(part.context.size(), options_.checked_positions);
    for (size_t i = part.context.size() - count; i < part.context.size(); ++i)
      CHECK(Cell(part, i) == part.context[i], "sequence ", part.id, ", position ", i);
    for (size_t i = 0; i < part.tokens.size(); ++i)
      CHECK(Cell(part, part.first_position + i) == part.tokens[i], "sequence ", part.id);
  }

  Status Failure(const PlannedSequence& part) const {
    return options_.fail_sequence ? options_.fail_sequence(part) : Status();
  }

  SequenceOutput Answer(const PlannedSequence& part) const {
    SequenceOutput output;
    if (part.sample) {
      output = ChooseTokens(
          part, [&](uint32_t, const TokenCounts&, uint64_t index) { return Choose(part, index); });
    } else {
      output.error = Failure(part);
    }
    if (!output.error.ok()) return output;
    for (const int32_t target : part.score_targets)
      output.scores.push_back({.token = target, .logprob = -1, .top = {}});
    return output;
  }

  StatusOr<SampledToken> Choose(PlannedSequence part, uint64_t index) const {
    part.sample_index = index;
    if (const Status failure = Failure(part); !failure.ok()) return failure;
    const int32_t token = AnswerToken(part.sampling->seed, index, options_.vocab_size);
    return SampledToken{
        .token = token,
        .logprob = options_.logprob,
        .top = options_.top && part.top_logprobs > 0 ? options_.top(token) : std::vector<TokenLogprob>(),
        .margin = part.signals ? kMargin : 0,
        .entropy = part.signals ? kEntropy : 0};
  }

  const Options options_;
  Memory device_, host_;
  bool is_lost_ = false;
};

}  // namespace terrace
