// Decides what each step computes. Owns the Sequences and the BlockAllocator; has no clock, thread or device of its
// own: time is an argument. One thread (the engine's loop). After every call free + held == total blocks.
//
// Policy: sequences are admitted in order of arrival while a place (max_sequences) and all blocks their whole answer may
// need are free, so an admitted sequence never runs out. A step decodes every running sequence first and spends the
// rest of max_step_tokens on prompts, oldest first, in chunks.
#pragma once

#include <cstdint>
#include <deque>
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
  uint32_t max_step_tokens = 256;
  uint32_t context_length = 0;  // of the model
  uint32_t vocab_size = 0;
  uint32_t block_tokens = 16;
  uint32_t blocks = 0;
  std::vector<int32_t> end_tokens;  // of the model
};

class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);
  ~Scheduler();

  // Whether `spec` can ever run: parameters, token ids, context, blocks. Pure; any thread.
  static Status Validate(const SequenceSpec& spec, const SchedulerOptions& options);

  // Takes a validated sequence.
  void Add(SequenceSpec spec, std::shared_ptr<TokenSink> sink, MonoTime now);
  // Drops closed and overdue sequences, admits waiting ones, plans one step. The plan borrows from this object until
  // Commit.
  StepPlan Schedule(MonoTime now);
  // Applies the result of the plan last scheduled: sends tokens to sinks, ends what is finished.
  void Commit(const StepPlan& plan, StepResult result, MonoTime now);
  // Ends everything with `status`.
  void CancelAll(const Status& status, MonoTime now);

  bool idle() const;
};

}  // namespace terrace
