// Decides what each step computes. Owns the Sequences and the BlockManager; has no clock, thread or device of
// its own: time is an argument. One thread (the engine's loop).
//
// Policy
// - A step decodes every running sequence first (each costs one token of max_step_tokens, so prompts never
//   hold decodes up) and spends the rest on prompts, in chunks, and on drafts.
// - A resumed answer is computed like a prompt, and goes on where it was.
// - Tokens of a draft go with the part that reaches the last known token: a window of them, if the step has
//   room and the pool blocks for so many, as nobody is preempted for them. What is accepted is part of the
//   answer from then on; at the first disagreement the rest is dropped, and blocks that hold nothing else are
//   given back. The prefix cache never sees what was not accepted.
// - So do drafts of the engine's own, which are offered to a plan that is made (Wishes, Offer): behind
//   decodes without a draft from outside, in the room that the plan leaves.
// - A second guess that begins otherwise (a branch, OfferBranch) is a part of its own in the same plan, with
//   one known token before it, the sequence's whole blocks and blocks of its own behind them. Every token is
//   chosen by the logits behind those before it, so of both parts the one that more tokens were accepted of
//   is the answer's. Its blocks become the sequence's; the other's go.
// - Prompts are taken by priority and, within one, the shortest remaining first, aged: a prompt loses ground
//   to later ones only for max_prefill_wait, however long it is. The same order decides who is admitted.
// - Blocks are taken as needed. A sequence starts from the longest beginning of its tokens that the prefix
//   cache holds; one whose next block another running sequence is about to compute waits for that, until it
//   has waited for max_prefill_wait in all.
// - When blocks run out, the sequence that is last by (priority, not paused, arrival) gives its blocks up and
//   waits again: swapped to host memory or computed again later, whichever is expected to take less time. So
//   the oldest sequence of the highest priority always goes on.
// - A sequence whose sink is full pauses, alone; it is the first of its priority to give its place up.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "text/block_key.h"
#include "worker/engine/executor.h"
#include "worker/engine/sequence.h"
#include "worker/kv/block_manager.h"
#include "worker/speculative/acceptance.h"
#include "worker/speculative/drafter.h"

namespace terrace {

struct SchedulerOptions {
  uint32_t max_sequences = 16;
  uint32_t max_step_tokens = 256;  // at least max_sequences: a step has room for every decode
  uint32_t context_length = 0;     // of the model
  uint32_t vocab_size = 0;
  uint32_t block_tokens = 16;
  uint32_t blocks = 0;
  uint32_t host_blocks = 0;  // of the swap memory
  bool prefix_cache = true;
  bool records_prefix_changes = false;  // for TakePrefixChanges, which somebody then has to call
  double max_prefill_wait_seconds = 5;
  BlockKeyScope scope = {};              // of the prefix cache; salts come with the sequences
  std::vector<int32_t> end_tokens = {};  // of the model
  bool audits = false;                   // every block is counted again after every call: tests
};

// What a preemption is expected to cost; the Engine keeps it up to date.
struct PreemptionCosts {
  double recompute_seconds_per_token = 1e-3;
  double swap_seconds_per_block = 1e-4;  // one way
};

struct SchedulerStats {
  uint32_t running = 0, waiting = 0;  // paused sequences run
  uint32_t paused = 0;
  uint64_t waiting_prompt_tokens = 0;
  uint32_t background_running = 0, background_waiting = 0;  // of running and waiting
  uint64_t background_prompt_tokens = 0;                    // of waiting_prompt_tokens
  uint32_t free_blocks = 0, held_blocks = 0, cached_blocks = 0, total_blocks = 0;
  uint32_t swapped_blocks = 0, host_blocks = 0;  // of the swap memory: in use, in all
  // Since the start. Of tokens: computed of prompts and resumed answers (again, after a preemption), and sent
  // to sinks. Of sequences: ended by a stop or their length, by an error, by cancellation (a closed sink, a
  // deadline, CancelAll).
  uint64_t prompt_tokens = 0, generated_tokens = 0, finished = 0, failed = 0, cancelled = 0;
  // Of drafts: tokens that the answer has too, and those from the first that it does not have on.
  uint64_t accepted_draft_tokens = 0, rejected_draft_tokens = 0;
  uint64_t recompute_preemptions = 0, swap_preemptions = 0;
  // Of prompts when first admitted; none without a prefix cache.
  uint64_t prefix_query_tokens = 0, prefix_hit_tokens = 0;
};

// A part of a plan that a draft may go with. Borrows from the Scheduler until Commit.
struct DraftWish {
  size_t part = 0;       // in StepPlan::sequences
  DraftRequest request;  // `most`: what the sequence may have, not what the step has room for
  uint32_t left = 0;     // tokens of its answer that are to come, at most
  const Acceptance* acceptance = nullptr;
  const Acceptance* branch = nullptr;  // of the first tokens of second guesses
};

// A sequence that wished for drafts and has ended.
struct EndedDrafted {
  uint64_t id = 0;
  uint32_t tokens = 0;  // of its answer
};

// How guessed tokens compare with the answer.
struct GuessOutcome {
  uint32_t verified = 0;  // tokens that went with the plan, without those behind the answer's end
  uint32_t compared = 0;  // up to the first one that was not chosen: of those verified, or of the first one
  uint32_t accepted = 0;  // of those compared
};

// Of a draft that was offered, and of its branch: where there was none, nothing of that was compared.
struct DraftOutcome : GuessOutcome {
  GuessOutcome branch = {};
  uint32_t gained = 0;  // tokens that the step gave more than it would have given
};

// Waits of sequences that ended since they were last taken, in seconds.
struct LatencySamples {
  std::vector<double> queue;        // from arrival to admission
  std::vector<double> first_token;  // from arrival, of the first token that is sent
  // Of tokens that come in one step each has an equal share of the time since the one before them; those that
  // come with the first token have none. So the samples of an answer add up to the time it took.
  std::vector<double> inter_token;
};

class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);
  ~Scheduler();

  // Whether `spec` can ever run: parameters, token ids, context, blocks. Pure; any thread.
  static Status Validate(const SequenceSpec& spec, const SchedulerOptions& options);

  // Takes a validated sequence. `now` is when it arrived.
  void Add(SequenceSpec spec, std::shared_ptr<TokenSink> sink, MonoTime now);
  // Drops closed and overdue sequences, makes room, admits waiting ones, plans one step. The plan borrows
  // from this object until Commit. Empty when nothing can run: all that is left is paused. Of many waiting
  // sequences only some are checked for closed sinks and deadlines each time; none is admitted unchecked.
  StepPlan Schedule(MonoTime now);
  // Between Schedule and Commit: the parts that may have a draft, and the tokens that the step has room for.
  std::vector<DraftWish> Wishes(const StepPlan& plan);
  uint32_t draft_room() const { return draft_room_; }
  // The first `verified` tokens of `draft` go with a part that was wished for, or as many as there are room
  // and blocks for: so many are returned. Where that is none, the first one is compared with what is chosen.
  // Once a part.
  uint32_t Offer(StepPlan& plan, size_t part, std::span<const int32_t> draft, uint32_t verified);
  // After Offer, once a part: the first `verified` tokens of a second guess, which begins otherwise, go with
  // the plan as a part of their own, or as many as there are room, a place and blocks for. Returns the tokens
  // that the step computes for it: one more than those, or none where a token of the draft is not verified
  // either. Its first token is compared with what is chosen in any case.
  uint32_t OfferBranch(StepPlan& plan, size_t part, std::span<const int32_t> branch, uint32_t verified);
  // Of the drafts offered, since the last call.
  std::vector<DraftOutcome> TakeDraftOutcomes() { return std::exchange(draft_outcomes_, {}); }
  // Sequences that wished for drafts and have ended, since the last call.
  std::vector<EndedDrafted> TakeEndedDrafted() { return std::exchange(ended_drafted_, {}); }
  // Applies the result of the plan last scheduled: sends tokens to sinks, ends what is finished.
  void Commit(const StepPlan& plan, StepResult result, MonoTime now);
  // Ends everything with `status`.
  void CancelAll(const Status& status, MonoTime now);

  void SetCosts(const PreemptionCosts& costs) { costs_ = costs; }
  std::vector<PrefixChange> TakePrefixChanges() { return blocks_.TakeChanges(); }
  LatencySamples TakeLatencies() { return std::exchange(latencies_, {}); }

  bool idle() const { return waiting_.empty() && running_.empty(); }
  SchedulerStats Stats() const;
  const SchedulerOptions& options() const { return options_; }

 private:
  struct Sequence;
  using SequencePtr = std::unique_ptr<Sequence>;
  // What is taken first: the higher priority, then the lower score (see Score), then the older.
  using QueueKey = std::tuple<int64_t, double, uint64_t>;
  struct HashOfKey {
    size_t operator()(const Hash128& key) const { return key.low; }
  };

  uint64_t preemptions() const { return totals_.recompute_preemptions + totals_.swap_preemptions; }
  double Score(const Sequence& sequence) const;
  QueueKey KeyOf(const Sequence& sequence) const;
  static bool Precedes(const Sequence& a, const Sequence& b);

  bool EndIfDead(Sequence& sequence, MonoTime now);
  void DropDead(MonoTime now);
  void MakeRoomForDecodes(StepPlan& plan);
  static bool GivesWay(const Sequence& running, const Sequence& waiting);
  Sequence* Victim(const Sequence& against, bool for_admission) const;
  void Preempt(Sequence& victim, StepPlan& plan);
  void Admit(StepPlan& plan, MonoTime now);
  bool TryAdmit(Sequence& sequence, StepPlan& plan, MonoTime now);
  bool Follow(Sequence& sequence, size_t whole_blocks);
  void EndFollowing(Sequence& sequence);
  bool IsOverdue(const Sequence& sequence, MonoTime now) const;
  void EndOverdueFollowing(MonoTime now);
  bool FreeUp(const Sequence& sequence, size_t blocks, StepPlan& plan);
  void TakeBlocks(Sequence& sequence, const PrefixMatch& match, StepPlan& plan);
  void WithdrawPromises(Sequence& sequence);
  void Withdraw(const Sequence& sequence, const Hash128& key);
  uint32_t PlanPromptsAndDrafts(uint32_t budget, StepPlan& plan);
  uint32_t Propose(Sequence& sequence, uint32_t chunk, uint32_t most);
  uint32_t TakeRoom(Sequence& sequence, size_t most);
  std::span<const int32_t> Known(std::span<const int32_t> guess) const;
  static void AddProposal(Sequence& sequence, std::span<const int32_t> proposed, PlannedSequence& part);
  void Plan(Sequence& sequence, uint32_t chunk, uint32_t proposed, StepPlan& plan);

  void Enqueue(SequencePtr sequence);
  SequencePtr Dequeue(Sequence& sequence);
  void Apply(Sequence& sequence, const PlannedSequence& planned, const SequenceOutput& output, MonoTime now);
  std::span<const SampledToken> Extend(Sequence& sequence, std::span<const SampledToken> chosen);
  size_t ChooseBranch(Sequence& sequence, size_t part, const StepResult& result);
  void Compare(Sequence& sequence, std::span<const SampledToken> tokens);
  void TrimBlocks(Sequence& sequence);
  void Send(Sequence& sequence, std::span<const SampledToken> tokens, MonoTime now);
  void ForgetBlocks(Sequence& sequence);
  void Publish(Sequence& sequence);
  void Finish(Sequence& sequence, FinishReason reason, const Status& error, MonoTime now);
  void Check() const;

  const SchedulerOptions options_;
  const double aging_;  // tokens of prompt that a second of waiting makes up for
  BlockManager blocks_;
  std::vector<BlockId> free_host_blocks_;
  PreemptionCosts costs_;

  std::vector<SequencePtr> running_;                // any order
  std::vector<SequencePtr> waiting_;                // any order; a sequence knows its place
  std::set<std::pair<QueueKey, Sequence*>> queue_;  // of those waiting that follow nobody
  // Whole blocks that running sequences are about to compute, and who waits for them.
  struct Promised {
    Sequence* by = nullptr;
    std::vector<Sequence*> followers;
  };
  std::unordered_map<Hash128, Promised, HashOfKey> promised_;
  std::set<std::pair<MonoTime, Sequence*>> following_;  // by arrival
  size_t next_checked_ = 0;                             // in waiting_
  uint64_t waiting_tokens_ = 0;
  uint32_t background_waiting_ = 0;  // in waiting_
  uint64_t background_tokens_ = 0;   // of waiting_tokens_

  // Whose part sequences[i] of the last plan is, before those of branches; empty after its Commit.
  std::vector<Sequence*> planned_;
  uint32_t draft_room_ = 0;  // of the last plan: tokens that may be proposed beside what is
  std::vector<DraftOutcome> draft_outcomes_;
  std::vector<EndedDrafted> ended_drafted_;
  uint64_t next_id_ = 0;
  SchedulerStats totals_;  // its totals only
  LatencySamples latencies_;
};

}  // namespace terrace
