// Decides what each step computes. Owns the Sequences and the BlockAllocator; has no clock, thread or device
// of its own: time is an argument. One thread (the engine's loop). After every call free + held == total
// blocks.
//
// Policy: sequences are admitted in order of arrival while a place (max_sequences) and all blocks their whole
// answer may need are free, so an admitted sequence never runs out. A step decodes every running sequence
// first and spends the rest of max_step_tokens on prompts, oldest first, in chunks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "worker/engine/executor.h"
#include "worker/engine/sequence.h"
#include "worker/kv/block_allocator.h"

namespace terrace {

struct SchedulerOptions {
  uint32_t max_sequences = 16;
  uint32_t max_step_tokens = 256;  // at least max_sequences: a step has room for every decode
  uint32_t context_length = 0;     // of the model
  uint32_t vocab_size = 0;
  uint32_t block_tokens = 16;
  uint32_t blocks = 0;
  std::vector<int32_t> end_tokens = {};  // of the model
};

struct SchedulerStats {
  uint32_t running = 0, waiting = 0;
  uint64_t waiting_prompt_tokens = 0;
  uint32_t free_blocks = 0, held_blocks = 0, total_blocks = 0;
  // Since the start. Of tokens: computed of prompts, and sent to sinks. Of sequences: ended by a stop or
  // their length, by an error, by cancellation (a closed sink, a deadline, CancelAll).
  uint64_t prompt_tokens = 0, generated_tokens = 0, finished = 0, failed = 0, cancelled = 0;
};

class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);
  ~Scheduler();

  // Whether `spec` can ever run: parameters, token ids, context, blocks. Pure; any thread.
  static Status Validate(const SequenceSpec& spec, const SchedulerOptions& options);

  // Takes a validated sequence. `now` is when it arrived.
  void Add(SequenceSpec spec, std::shared_ptr<TokenSink> sink, MonoTime now);
  // Drops closed and overdue sequences, admits waiting ones, plans one step. The plan borrows from this
  // object until Commit.
  StepPlan Schedule(MonoTime now);
  // Applies the result of the plan last scheduled: sends tokens to sinks, ends what is finished.
  void Commit(const StepPlan& plan, StepResult result, MonoTime now);
  // Ends everything with `status`.
  void CancelAll(const Status& status, MonoTime now);

  bool idle() const { return waiting_.empty() && running_.empty(); }
  SchedulerStats Stats() const;
  const SchedulerOptions& options() const { return options_; }

 private:
  struct Sequence;
  using Sequences = std::vector<std::unique_ptr<Sequence>>;  // in order of arrival

  void DropDead(Sequences& sequences, MonoTime now);
  void Admit(MonoTime now);
  void Plan(Sequence& sequence, uint32_t tokens, StepPlan& plan);
  void Apply(Sequence& sequence, const PlannedSequence& planned, const SequenceOutput& output, MonoTime now);
  void Finish(Sequence& sequence, FinishReason reason, const Status& error, MonoTime now);
  bool IsEnd(const Sequence& sequence, int32_t token) const;
  void CheckBlocks() const;

  const SchedulerOptions options_;
  BlockAllocator allocator_;
  Sequences waiting_, running_;
  std::vector<Sequence*> planned_;  // whose part sequences[i] of the last plan is; empty after its Commit
  uint64_t next_id_ = 0;
  SchedulerStats totals_;  // its totals only
};

}  // namespace terrace
