// A Scheduler with a fake executor and a clock, watched: every step and every end is compared with what the
// scheduler promises, by an oracle that runs each sequence for itself. For property tests and fuzzing; one
// thread. What does not hold is collected in violations(); what the Scheduler CHECKs itself aborts.
//
// Checked of every step
// - Blocks add up, the host's too; no block is written by one part and read or written by another; the held
//   blocks are those of the planned sequences, when all that run are planned.
// - A part computes the oracle's tokens, where the sequence stands or, after a preemption, earlier; what is
//   proposed behind them is of the draft, as far as it was right so far.
// - What is offered to a plan, right and wrong, drafts and branches, goes with it as far as there are room,
//   places and blocks, and takes none of them from anybody.
// - No closed, overdue or full sequence is planned.
// - Every sequence that decoded and is not full decodes again, unless it was preempted; then every sequence
//   that goes on ranks before it. The first in rank is never preempted.
// - The budget holds, and is used up unless every sequence is planned to its end (or score limit), with as
//   much of its draft as there are blocks for.
// - A plan is empty only if every sequence left is full, or lower in priority than one that is.
// Checked of every end
// - It comes once; the tokens are the oracle's, whatever was resumed or drafted, all of them unless somebody
//   meddled.
// - cached_tokens: no more than was computed of this beginning under this salt before; when nothing was
//   evicted, no less.
// Checked at the end of all, besides totals and returned memory: the order of admission (see
// CheckAdmissionOrder).
#pragma once

#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/fake_clock.h"
#include "worker/engine/fake_executor.h"
#include "worker/engine/scheduler.h"

namespace terrace {

class CheckedScheduler {
 public:
  struct Options {
    SchedulerOptions scheduler;  // audits are switched on
    StepTimeModel time = {.seconds_per_step = 1e-3};
    // The answer of each `failing_seeds`th seed fails at one of its first tokens, or at its first chunk.
    uint64_t failing_seeds = 0;  // 0: none
    // Drafts are offered to plans, drawn from this; 0: none.
    uint32_t draft_seed = 0;
  };

  explicit CheckedScheduler(const Options& options);
  ~CheckedScheduler();

  // Its number, from 0; nothing when the spec is refused.
  std::optional<size_t> Add(SequenceSpec spec);
  bool Step();  // false when there was nothing to do
  void Close(size_t sequence);
  void SetFull(size_t sequence, bool is_full);
  void SetCosts(const PreemptionCosts& costs) { scheduler_.SetCosts(costs); }
  void CancelAll();
  void Advance(Duration by) { clock_.Advance(by); }
  // Opens all sinks, runs what is left and checks what holds at the end. Nothing may be called afterwards.
  void Finish();

  size_t size() const { return sequences_.size(); }
  bool has_ended(size_t sequence) const;
  const SequenceResult& ResultOf(size_t sequence) const;  // once it has ended
  bool idle() const { return scheduler_.idle(); }
  MonoTime now() const { return clock_.Now(); }
  SchedulerStats stats() const { return scheduler_.Stats(); }
  // Prompt and answer as far as it was sent: what the next turn of a conversation begins with.
  std::vector<int32_t> TokensOf(size_t sequence) const;
  // Of the drafts that were offered.
  uint64_t verified_tokens() const { return verified_tokens_; }
  uint64_t accepted_tokens() const { return accepted_tokens_; }
  uint64_t accepted_branch_tokens() const { return accepted_branch_tokens_; }  // of those
  // Whole blocks of prompts that were computed more than once though a sequence could have waited for them.
  size_t repeated_blocks() const { return repeated_blocks_; }
  const std::vector<std::string>& violations() const { return violations_; }

 private:
  struct Sequence;
  struct Before;  // a step

  template <typename... Args>
  void Expect(bool holds, const Args&... args) {
    if (!holds && violations_.size() < 20) violations_.push_back(Concat("step ", step_, ": ", args...));
  }
  uint32_t Draw(uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random_);
  }
  Status Failure(const PlannedSequence& part) const;
  bool IsDead(const Sequence& sequence) const;
  bool RanksBefore(const Sequence& a, const Sequence& b) const;
  std::optional<size_t> FirstInRank() const;

  Before Remember() const;
  void CheckPlan(const StepPlan& plan, const Before& before);
  void CheckPart(const PlannedSequence& part);
  void CheckPreemptions(const StepPlan& plan, const Before& before);
  void CheckBudget(const StepPlan& plan);
  void CheckBlocks(const StepPlan& plan);
  void CheckEmptyPlan();
  using OfferedDrafts = std::vector<std::pair<size_t, std::vector<int32_t>>>;  // by part of the plan
  void OfferDrafts(StepPlan& plan);
  void OfferBranches(StepPlan& plan, const OfferedDrafts& drafts);
  void CheckGuess(const GuessOutcome& outcome);
  void CheckOutcomes();
  void NoteResults(const StepPlan& plan);
  void CheckEnds();
  void CheckAnswer(const Sequence& sequence);
  void CheckCachedTokens(const Sequence& sequence);
  size_t AdmittedIn(const Sequence& sequence) const;
  void CheckAdmissionOrder();
  void CheckTotals();

  const Options options_;
  FakeClock clock_;
  Scheduler scheduler_;
  FakeExecutor executor_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::vector<size_t> live_;
  std::vector<MonoTime> steps_;  // when each step was scheduled
  size_t step_ = 0;
  bool is_roomy_ = true;        // so far more than half of the blocks were free: nothing was evicted
  uint64_t prompt_tokens_ = 0;  // computed
  size_t repeated_blocks_ = 0;
  std::mt19937 random_;                                 // of drafts
  uint64_t verified_tokens_ = 0, accepted_tokens_ = 0;  // of drafts and branches
  uint64_t accepted_branch_tokens_ = 0;
  std::set<std::pair<std::string, std::vector<int32_t>>> computed_blocks_;  // salt, tokens up to their end
  std::vector<std::string> violations_;
};

}  // namespace terrace
