#include "worker/engine/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace terrace {
namespace {

constexpr size_t kMaxStopTokens = 64;
constexpr uint32_t kMaxTopLogprobs = 20;
constexpr int32_t kMaxPriority = 100;
constexpr size_t kMaxSaltBytes = 256;
// Positions whose logits one step computes for scores and drafts, beside the last of every part:
// [128, vocab_size] f32 are 64 MiB at 128k tokens.
constexpr uint32_t kMaxExtraLogits = 128;
// Waiting sequences that a step checks for closed sinks and deadlines, and that it tries to admit.
constexpr size_t kCheckedWaiting = 256, kTriedWaiting = 256;

Status InvalidValue(const std::string& message) {
  return WithReason(InvalidArgument(message), "invalid_value");
}

// Positions whose keys and values are kept: the last token of an answer is never fed back.
uint64_t PositionsFor(uint64_t prompt, uint64_t answer) { return prompt + std::max<uint64_t>(answer, 1) - 1; }

uint64_t CachePositions(const SchedulerOptions& options) {
  return uint64_t{options.blocks} * options.block_tokens;
}

// Tokens of a prompt and its answer together: what the KV cache can hold is a limit like the context.
uint64_t LengthLimit(const SchedulerOptions& options) {
  return std::min<uint64_t>(options.context_length, CachePositions(options) + 1);
}

// Tokens a valid sequence's answer has at most.
uint32_t AnswerLimit(const SequenceSpec& spec, const SchedulerOptions& options) {
  if (spec.max_tokens > 0) return spec.max_tokens;
  return spec.score_prompt ? 0 : static_cast<uint32_t>(LengthLimit(options) - spec.prompt.size());
}

Status CheckTokens(const std::vector<int32_t>& tokens, uint32_t vocab_size, std::string_view field) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || static_cast<uint32_t>(tokens[i]) >= vocab_size) {
      return InvalidValue(Concat(field, "[", i, "] is ", tokens[i], ", not in [0, ", vocab_size, ")"));
    }
  }
  return {};
}

Status CheckLength(const SequenceSpec& spec, const SchedulerOptions& options) {
  const uint64_t limit = LengthLimit(options);
  const uint64_t prompt = spec.prompt.size();
  const bool is_open = spec.max_tokens == 0 && !spec.score_prompt;  // runs to the limit: any room will do
  const uint64_t answer = is_open ? spec.resume.size() + 1 : spec.max_tokens;
  if (prompt + answer <= limit && PositionsFor(prompt, answer) <= CachePositions(options)) return {};
  return WithReason(
      InvalidArgument("a prompt of ", prompt, " tokens with an answer of ", is_open ? "at least " : "",
                      answer, " needs ", prompt + answer, " tokens; the limit is ", limit),
      "context_length_exceeded");
}

bool EndsAnswer(const SequenceSpec& spec, const SchedulerOptions& options, int32_t token) {
  const auto has = [token](const std::vector<int32_t>& tokens) {
    return std::ranges::find(tokens, token) != tokens.end();
  };
  return has(spec.stop_tokens) || (!spec.ignore_eos && has(options.end_tokens));
}

// What is resumed has not ended yet.
Status CheckResume(const SequenceSpec& spec, const SchedulerOptions& options) {
  if (spec.resume.empty()) return {};
  RETURN_IF_ERROR(CheckTokens(spec.resume, options.vocab_size, "resume"));
  for (size_t i = 0; i < spec.resume.size(); ++i) {
    if (EndsAnswer(spec, options, spec.resume[i])) {
      return InvalidValue(Concat("resume[", i, "] is ", spec.resume[i], ", which ends the answer"));
    }
  }
  const uint32_t limit = AnswerLimit(spec, options);
  if (spec.resume.size() < limit) return {};
  return InvalidValue(Concat("resume has ", spec.resume.size(), " tokens and the answer at most ", limit,
                             ": none is left to generate"));
}

// A guess, of which `verified` tokens were, with what the answer has got. Where it ended, nothing is known of
// the rest.
GuessOutcome CompareGuess(std::span<const int32_t> guess, uint32_t verified,
                          std::span<const SampledToken> tokens) {
  GuessOutcome outcome;
  const size_t most = std::min<size_t>(tokens.size(), std::max(verified, 1u));
  while (outcome.compared < most && outcome.compared == outcome.accepted) {
    const bool is_right = tokens[outcome.compared].token == guess[outcome.compared];
    outcome.accepted += is_right ? 1 : 0;
    ++outcome.compared;
  }
  const bool is_cut = outcome.compared == outcome.accepted;
  outcome.verified = is_cut ? std::min(verified, outcome.compared) : verified;
  return outcome;
}

}  // namespace

struct Scheduler::Sequence {
  uint64_t id = 0;
  SequenceSpec spec;  // its prompt and what is resumed have moved into `tokens`, its draft into `draft`
  std::shared_ptr<TokenSink> sink;
  std::vector<int32_t> tokens;  // prompt, then answer
  uint32_t prompt_tokens = 0;
  uint32_t given_tokens = 0;   // of the spec: prompt, and what is resumed
  std::vector<int32_t> draft;  // behind `tokens`, not verified yet; within answer_limit
  uint32_t answer_limit = 0;
  TokenCounts counts;
  Hash128 root;
  std::vector<Hash128> keys;  // of the whole blocks of `tokens`, as far as they were needed

  uint32_t computed = 0;             // positions [0, computed) are in `blocks`, or in `host_blocks`
  uint32_t scored = 0;               // positions whose scores were sent
  BlockTable blocks;                 // while running
  uint32_t published = 0;            // whole ones of `blocks` that the prefix cache was told of
  std::vector<BlockId> host_blocks;  // while swapped
  uint32_t copied = 0;               // the end of the rows that were copied from another block; 0: none were
  std::vector<int32_t> proposal;     // the planned tokens, where some of a draft go with them
  // To the planned part, by the engine's drafter; so many of them are verified.
  std::vector<int32_t> offered;
  uint32_t verified = 0;
  // The second guess beside it: as offered, and, while some of it is verified, its own part of the plan.
  struct Branch {
    std::vector<int32_t> offered = {};
    std::vector<int32_t> tokens = {};  // of the part: the last known one, then those verified
    BlockTable blocks = {};            // whole ones of the sequence, shared, then its own; empty: no part
    size_t part = 0;                   // in StepPlan::sequences
    uint32_t verified() const { return tokens.empty() ? 0 : static_cast<uint32_t>(tokens.size()) - 1; }
  };
  Branch branch;
  bool is_running = false, is_paused = false, is_finished = false;

  // While waiting.
  size_t place = 0;  // in waiting_
  QueueKey queue_key;
  std::optional<Hash128> following;  // the promised block it waits for
  uint32_t missing = 0;              // tokens that were not computed when it came here

  Acceptance acceptance;          // of what was offered
  Acceptance branch_acceptance;   // of the first tokens of second guesses
  bool wished_for_draft = false;  // ever: the drafter may know it

  MonoTime arrived;
  std::optional<MonoTime> admitted, decoding, last_token;
  SequenceStats stats;

  uint32_t generated() const { return static_cast<uint32_t>(tokens.size()) - prompt_tokens; }
  uint32_t remaining() const { return static_cast<uint32_t>(tokens.size()) - computed; }
  bool is_decoding() const { return generated() > 0 && remaining() == 1; }
  // Positions that a cached prefix may cover: the logits of the last token, and those to be scored, have to
  // be computed.
  size_t prefix_limit() const {
    const bool is_scoring = spec.score_prompt && scored < prompt_tokens;
    return std::min<size_t>(tokens.size() - 1, is_scoring ? scored : tokens.size());
  }
  // The next tokens that may be computed together.
  uint32_t chunk_limit() const {
    if (!spec.score_prompt || computed >= prompt_tokens) return remaining();
    return (computed < scored ? scored : prompt_tokens) - computed;
  }
  bool is_scoring() const { return spec.score_prompt && computed >= scored && computed < prompt_tokens; }
};

Scheduler::Scheduler(SchedulerOptions options)
    : options_(std::move(options)),
      aging_(options_.context_length / std::max(options_.max_prefill_wait_seconds, 1e-3)),
      blocks_({.blocks = options_.blocks,
               .block_tokens = options_.block_tokens,
               .keeps_prefixes = options_.prefix_cache,
               .records_changes = options_.records_prefix_changes}) {
  CHECK(options_.max_sequences > 0 && options_.max_step_tokens >= options_.max_sequences, "max_sequences ",
        options_.max_sequences, ", max_step_tokens ", options_.max_step_tokens);
  CHECK(options_.blocks > 0);
  for (uint32_t id = options_.host_blocks; id > 0; --id)
    free_host_blocks_.push_back(static_cast<BlockId>(id - 1));
}

Scheduler::~Scheduler() = default;

Status Scheduler::Validate(const SequenceSpec& spec, const SchedulerOptions& options) {
  if (spec.prompt.empty()) return InvalidValue("prompt has no tokens; at least 1 is needed");
  RETURN_IF_ERROR(CheckLength(spec, options));
  RETURN_IF_ERROR(CheckTokens(spec.prompt, options.vocab_size, "prompt"));
  if (spec.stop_tokens.size() > kMaxStopTokens) {
    return InvalidValue(Concat(spec.stop_tokens.size(), " stop tokens, limit ", kMaxStopTokens));
  }
  RETURN_IF_ERROR(CheckTokens(spec.stop_tokens, options.vocab_size, "stop_tokens"));
  RETURN_IF_ERROR(CheckResume(spec, options));
  RETURN_IF_ERROR(CheckTokens(spec.draft, options.vocab_size, "draft"));
  if (spec.top_logprobs > kMaxTopLogprobs) {
    return InvalidValue(Concat("top_logprobs is ", spec.top_logprobs, ", limit ", kMaxTopLogprobs));
  }
  if (spec.priority < -kMaxPriority || spec.priority > kMaxPriority) {
    return InvalidValue(
        Concat("priority is ", spec.priority, ", not in [", -kMaxPriority, ", ", kMaxPriority, "]"));
  }
  if (spec.cache_salt.size() > kMaxSaltBytes) {
    return InvalidValue(Concat("cache_salt has ", spec.cache_salt.size(), " bytes, limit ", kMaxSaltBytes));
  }
  return ValidateSamplingParams(spec.sampling, options.vocab_size);
}

void Scheduler::Add(SequenceSpec spec, std::shared_ptr<TokenSink> sink, MonoTime now) {
  auto sequence = std::make_unique<Sequence>();
  sequence->id = next_id_++;
  sequence->answer_limit = AnswerLimit(spec, options_);
  sequence->tokens = std::exchange(spec.prompt, {});
  sequence->prompt_tokens = static_cast<uint32_t>(sequence->tokens.size());
  sequence->stats.prompt_tokens = sequence->prompt_tokens;
  if (spec.sampling.repetition_penalty != 1) sequence->counts.AddPrompt(sequence->tokens);  // the only reader
  for (const int32_t token : std::exchange(spec.resume, {})) {
    sequence->tokens.push_back(token);
    sequence->counts.AddGenerated(token);
  }
  sequence->given_tokens = static_cast<uint32_t>(sequence->tokens.size());
  sequence->draft = std::exchange(spec.draft, {});
  sequence->draft.resize(
      std::min<size_t>(sequence->draft.size(), sequence->answer_limit - sequence->generated()));
  if (spec.draft_record.has_value()) {
    sequence->acceptance = Acceptance(spec.draft_record->drafts);
    sequence->branch_acceptance = Acceptance(spec.draft_record->branches);
  }
  if (options_.prefix_cache) {
    BlockKeyScope scope = options_.scope;
    scope.salt = spec.cache_salt;
    sequence->root = RootBlockKey(scope);
    ExtendBlockKeys(sequence->root, sequence->tokens, options_.block_tokens, sequence->keys);
  }
  sequence->spec = std::move(spec);
  sequence->sink = std::move(sink);
  sequence->arrived = now;
  Enqueue(std::move(sequence));
}

StepPlan Scheduler::Schedule(MonoTime now) {
  StepPlan plan;
  planned_.clear();
  DropDead(now);
  EndOverdueFollowing(now);
  const uint64_t before = preemptions();
  MakeRoomForDecodes(plan);
  // Who just gave its blocks up is not taken back in the same breath, unless nobody else can run.
  if (preemptions() == before ||
      std::ranges::all_of(running_, [](const auto& sequence) { return sequence->is_paused; })) {
    Admit(plan, now);
  }

  uint32_t budget = options_.max_step_tokens;
  for (const SequencePtr& sequence : running_) {
    if (sequence->is_paused || !sequence->is_decoding()) continue;
    --budget;
    if (sequence->draft.empty()) Plan(*sequence, 1, /*proposed=*/0, plan);
  }
  draft_room_ = PlanPromptsAndDrafts(budget, plan);
  Check();
  return plan;
}

// Tokens still to compute, less what its age makes up for: as everyone ages alike, the order of two
// sequences never changes while they wait. Who waited max_prefill_wait longer than another comes first, even
// with a whole context against one token.
double Scheduler::Score(const Sequence& sequence) const {
  return sequence.remaining() + aging_ * Seconds(sequence.arrived.time_since_epoch());
}

Scheduler::QueueKey Scheduler::KeyOf(const Sequence& sequence) const {
  return {-int64_t{sequence.spec.priority}, Score(sequence), sequence.id};
}

// Whether `a` keeps its blocks longer than `b`.
bool Scheduler::Precedes(const Sequence& a, const Sequence& b) {
  return std::tuple(-a.spec.priority, a.is_paused, a.id) < std::tuple(-b.spec.priority, b.is_paused, b.id);
}

void Scheduler::Enqueue(SequencePtr sequence) {
  sequence->is_running = false;
  sequence->place = waiting_.size();
  sequence->missing = sequence->remaining();
  sequence->queue_key = KeyOf(*sequence);
  waiting_tokens_ += sequence->missing;
  if (sequence->spec.is_background) {
    ++background_waiting_;
    background_tokens_ += sequence->missing;
  }
  queue_.emplace(sequence->queue_key, sequence.get());
  waiting_.push_back(std::move(sequence));
}

Scheduler::SequencePtr Scheduler::Dequeue(Sequence& sequence) {
  if (sequence.following.has_value()) {
    std::erase(promised_.at(*sequence.following).followers, &sequence);
    EndFollowing(sequence);
  }
  queue_.erase({sequence.queue_key, &sequence});
  waiting_tokens_ -= sequence.missing;
  if (sequence.spec.is_background) {
    --background_waiting_;
    background_tokens_ -= sequence.missing;
  }
  SequencePtr out = std::exchange(waiting_[sequence.place], nullptr);
  if (out != waiting_.back()) {
    waiting_[sequence.place] = std::move(waiting_.back());
    if (waiting_[sequence.place]) waiting_[sequence.place]->place = sequence.place;
  }
  waiting_.pop_back();
  return out;
}

bool Scheduler::EndIfDead(Sequence& sequence, MonoTime now) {
  if (sequence.sink->is_closed()) {
    Finish(sequence, FinishReason::kCancelled, WithReason(Cancelled("nobody reads the answer"), "cancelled"),
           now);
  } else if (sequence.spec.deadline.has_value() && *sequence.spec.deadline <= now) {
    Finish(sequence, FinishReason::kCancelled,
           WithReason(DeadlineExceeded("the deadline passed after ",
                                       std::min(sequence.computed, sequence.prompt_tokens), " of ",
                                       sequence.prompt_tokens, " prompt tokens and ", sequence.generated(),
                                       " tokens of the answer"),
                      "deadline_exceeded"),
           now);
  }
  return sequence.is_finished;
}

void Scheduler::DropDead(MonoTime now) {
  std::erase_if(running_, [&](const SequencePtr& sequence) {
    if (EndIfDead(*sequence, now)) return true;
    const bool was_paused = std::exchange(sequence->is_paused, sequence->sink->is_full());
    if (sequence->is_paused && !was_paused) WithdrawPromises(*sequence);
    return false;
  });
  for (size_t i = std::min(kCheckedWaiting, waiting_.size()); i > 0 && !waiting_.empty(); --i) {
    next_checked_ = next_checked_ < waiting_.size() ? next_checked_ : 0;
    if (Sequence& sequence = *waiting_[next_checked_]; EndIfDead(sequence, now)) {
      Dequeue(sequence);
    } else {
      ++next_checked_;
    }
  }
}

// Every sequence that decodes gets the block its next token needs, in order of rank.
void Scheduler::MakeRoomForDecodes(StepPlan& plan) {
  std::vector<Sequence*> needy;
  for (const SequencePtr& sequence : running_) {
    const bool is_covered = sequence->computed < sequence->blocks.size() * options_.block_tokens;
    if (!sequence->is_paused && sequence->is_decoding() && !is_covered) needy.push_back(sequence.get());
  }
  std::ranges::sort(needy, [](const Sequence* a, const Sequence* b) { return Precedes(*a, *b); });
  for (Sequence* sequence : needy) {
    while (sequence->is_running && blocks_.available() == 0) {
      Preempt(*Victim(*sequence, /*for_admission=*/false), plan);
    }
    if (sequence->is_running) CHECK(blocks_.Allocate(1, sequence->blocks).ok());
  }
}

// Whether a running sequence makes room to let `waiting` in.
bool Scheduler::GivesWay(const Sequence& running, const Sequence& waiting) {
  if (running.is_paused && running.spec.priority == waiting.spec.priority) return true;
  return running.spec.priority < waiting.spec.priority;
}

// Who gives its blocks up first for `against`: the last in rank. A running sequence may be its own victim; to
// let a waiting one in, only those give way that are of a lower priority or paused.
Scheduler::Sequence* Scheduler::Victim(const Sequence& against, bool for_admission) const {
  Sequence* victim = nullptr;
  for (const SequencePtr& sequence : running_) {
    const bool may_go = !for_admission || GivesWay(*sequence, against);
    if (may_go && (victim == nullptr || Precedes(*victim, *sequence))) victim = sequence.get();
  }
  return victim;
}

void Scheduler::Preempt(Sequence& victim, StepPlan& plan) {
  const size_t used = BlocksFor(victim.computed, options_.block_tokens);
  // Blocks that others hold too stay where they are; the others are expected to be lost.
  uint32_t lost = 0;
  for (size_t i = 0; i < used; ++i)
    lost += blocks_.holders(victim.blocks[i]) == 1 ? options_.block_tokens : 0;
  const double swap = 2 * costs_.swap_seconds_per_block * static_cast<double>(used);
  if (used > 0 && used <= free_host_blocks_.size() && swap < costs_.recompute_seconds_per_token * lost) {
    for (size_t i = 0; i < used; ++i) {
      victim.host_blocks.push_back(free_host_blocks_.back());
      free_host_blocks_.pop_back();
      plan.transfers.push_back(
          {.kind = BlockTransfer::Kind::kToHost, .from = victim.blocks[i], .to = victim.host_blocks.back()});
    }
    ++totals_.swap_preemptions;
  } else {
    victim.computed = 0;
    ++totals_.recompute_preemptions;
  }
  ++victim.stats.preemptions;
  WithdrawPromises(victim);
  blocks_.Release(victim.blocks);
  const auto found =
      std::ranges::find_if(running_, [&](const SequencePtr& sequence) { return sequence.get() == &victim; });
  SequencePtr moved = std::move(*found);
  running_.erase(found);
  Enqueue(std::move(moved));
}

void Scheduler::Admit(StepPlan& plan, MonoTime now) {
  const uint64_t before = preemptions();
  // One that had others preempted is the last of its step: they are in the queue now, maybe before `next`.
  size_t tried = 0;
  for (auto next = queue_.begin();
       next != queue_.end() && tried < kTriedWaiting && preemptions() == before;) {
    Sequence& sequence = *next->second;
    ++next;  // nothing below takes another one out of the queue
    if (EndIfDead(sequence, now)) {
      Dequeue(sequence);
    } else if (!sequence.sink->is_full()) {
      ++tried;
      if (!TryAdmit(sequence, plan, now) && !sequence.following.has_value()) {
        return;  // nobody overtakes who waits for room
      }
    }
  }
}

bool Scheduler::TryAdmit(Sequence& sequence, StepPlan& plan, MonoTime now) {
  if (running_.size() >= options_.max_sequences && Victim(sequence, /*for_admission=*/true) == nullptr) {
    return false;
  }
  const bool is_swapped = !sequence.host_blocks.empty();
  const size_t limit = is_swapped ? sequence.computed : sequence.prefix_limit();
  PrefixMatch match = blocks_.Match(sequence.root, sequence.keys, sequence.tokens, limit);
  if (is_swapped) match.tail = -1;  // the host has it
  if (!is_swapped && !IsOverdue(sequence, now) && Follow(sequence, match.blocks.size())) return false;

  const size_t blocks = BlocksFor(sequence.tokens.size(), options_.block_tokens) - match.blocks.size();
  for (const BlockId block : match.blocks) blocks_.Share(block);
  bool has_room = false;
  if (match.tail >= 0) {
    blocks_.Share(match.tail);
    has_room = FreeUp(sequence, blocks, plan);
    if (!has_room) {  // without the tail's block there may be
      blocks_.Release(match.tail);
      match.tokens -= std::exchange(match.tail_rows, 0);
      match.tail = -1;
    }
  }
  if (!has_room && !FreeUp(sequence, blocks, plan)) {
    blocks_.Release(match.blocks);
    return false;
  }

  running_.push_back(Dequeue(sequence));
  sequence.is_running = true;
  sequence.is_paused = false;
  if (!sequence.admitted.has_value()) {
    const uint32_t cached = std::min(match.tokens, sequence.prompt_tokens);
    sequence.admitted = now;
    sequence.stats.cached_tokens = cached;
    sequence.sink->OnStarted(cached);
    if (options_.prefix_cache) totals_.prefix_query_tokens += sequence.prompt_tokens;
    totals_.prefix_hit_tokens += cached;
    if (!sequence.spec.is_background) latencies_.queue.push_back(Seconds(now - sequence.arrived));
  }
  TakeBlocks(sequence, match, plan);
  return true;
}

// Waits for the last of the blocks behind the first `whole_blocks` that another sequence computes already.
bool Scheduler::Follow(Sequence& sequence, size_t whole_blocks) {
  std::optional<Hash128> last;
  const Sequence* leader = nullptr;
  for (size_t i = whole_blocks;
       i < sequence.keys.size() && i * options_.block_tokens < sequence.prefix_limit(); ++i) {
    const auto promised = promised_.find(sequence.keys[i]);
    if (promised == promised_.end() || (leader != nullptr && promised->second.by != leader)) break;
    leader = promised->second.by;
    last = sequence.keys[i];
  }
  if (leader == nullptr || leader->spec.priority < sequence.spec.priority) return false;
  queue_.erase({sequence.queue_key, &sequence});
  sequence.following = last;
  promised_.at(*last).followers.push_back(&sequence);
  following_.emplace(sequence.arrived, &sequence);
  return true;
}

// It is in the queue again; its leader's promise is the caller's.
void Scheduler::EndFollowing(Sequence& sequence) {
  sequence.following.reset();
  following_.erase({sequence.arrived, &sequence});
  queue_.emplace(sequence.queue_key, &sequence);
}

bool Scheduler::IsOverdue(const Sequence& sequence, MonoTime now) const {
  return Seconds(now - sequence.arrived) > options_.max_prefill_wait_seconds;
}

void Scheduler::EndOverdueFollowing(MonoTime now) {
  while (!following_.empty() && IsOverdue(*following_.begin()->second, now)) {
    Sequence& sequence = *following_.begin()->second;
    std::erase(promised_.at(*sequence.following).followers, &sequence);
    EndFollowing(sequence);
  }
}

// Preempts who has to give way until there are a place and `blocks` blocks for `sequence`, and one block more
// for every running sequence, which would be preempted soon otherwise. Preempts nobody in vain.
bool Scheduler::FreeUp(const Sequence& sequence, size_t blocks, StepPlan& plan) {
  const auto has_room = [&](size_t running, size_t available) {
    return running < options_.max_sequences && available >= blocks + running;
  };
  if (has_room(running_.size(), blocks_.available())) return true;
  size_t running = running_.size(), available = blocks_.available();
  BlockTable given_up;
  for (const SequencePtr& other : running_) {
    if (!GivesWay(*other, sequence)) continue;
    --running;
    given_up.insert(given_up.end(), other->blocks.begin(), other->blocks.end());
  }
  std::ranges::sort(given_up);
  for (auto first = given_up.begin(); first != given_up.end();) {
    const auto last = std::upper_bound(first, given_up.end(), *first);
    available +=
        blocks_.holders(*first) == static_cast<size_t>(last - first) ? 1 : 0;  // nobody else holds it
    first = last;
  }
  if (!has_room(running, available)) return false;
  while (!has_room(running_.size(), blocks_.available())) {
    Preempt(*Victim(sequence, /*for_admission=*/true), plan);
  }
  return true;
}

// Blocks for all tokens: those of `match`, which are shared already, then new ones.
void Scheduler::TakeBlocks(Sequence& sequence, const PrefixMatch& match, StepPlan& plan) {
  sequence.blocks = match.blocks;
  sequence.published = static_cast<uint32_t>(match.blocks.size());
  const size_t needed = BlocksFor(sequence.tokens.size(), options_.block_tokens) - match.blocks.size();
  CHECK(blocks_.Allocate(needed, sequence.blocks).ok());
  if (!sequence.host_blocks.empty()) {
    for (size_t i = match.blocks.size(); i < sequence.host_blocks.size(); ++i) {
      plan.transfers.push_back({.kind = BlockTransfer::Kind::kFromHost,
                                .from = sequence.host_blocks[i],
                                .to = sequence.blocks[i]});
    }
    free_host_blocks_.insert(free_host_blocks_.end(), sequence.host_blocks.begin(),
                             sequence.host_blocks.end());
    sequence.host_blocks.clear();
  } else {
    sequence.computed = match.tokens;
    if (match.tail >= 0) {
      plan.transfers.push_back({.kind = BlockTransfer::Kind::kCopyRows,
                                .from = match.tail,
                                .to = sequence.blocks[match.blocks.size()],
                                .rows = match.tail_rows});
      blocks_.Release(match.tail);
    }
    sequence.copied = match.tail >= 0 ? match.tokens : 0;
  }
  if (options_.prefix_cache) {
    for (size_t i = sequence.computed / options_.block_tokens; i < sequence.keys.size(); ++i)
      promised_.try_emplace(sequence.keys[i], Promised{.by = &sequence, .followers = {}});
  }
}

void Scheduler::WithdrawPromises(Sequence& sequence) {
  for (size_t i = sequence.computed / options_.block_tokens; i < sequence.keys.size(); ++i)
    Withdraw(sequence, sequence.keys[i]);
}

// The block is computed, or will not be: who waited for it looks for itself.
void Scheduler::Withdraw(const Sequence& sequence, const Hash128& key) {
  const auto promised = promised_.find(key);
  if (promised == promised_.end() || promised->second.by != &sequence) return;
  for (Sequence* follower : promised->second.followers) EndFollowing(*follower);
  promised_.erase(promised);
}

// Chunks of prompts, and so much of drafts as goes behind a last chunk or the one token of a decode, which
// the budget has paid for already. Returns what is left for more drafts.
uint32_t Scheduler::PlanPromptsAndDrafts(uint32_t budget, StepPlan& plan) {
  std::vector<std::pair<QueueKey, Sequence*>> order;
  for (const SequencePtr& sequence : running_) {
    const bool has_more = !sequence->is_decoding() || !sequence->draft.empty();
    if (!sequence->is_paused && has_more) order.emplace_back(KeyOf(*sequence), sequence.get());
  }
  std::ranges::sort(order);
  uint32_t logits = kMaxExtraLogits;
  for (const auto& [key, sequence] : order) {
    uint32_t chunk = 1;
    if (!sequence->is_decoding()) {
      chunk = std::min(budget, sequence->chunk_limit());
      if (sequence->is_scoring()) {
        chunk = std::min(chunk, logits);
        logits -= chunk;
      }
      budget -= chunk;
    }
    if (chunk == 0) continue;
    const uint32_t proposed = Propose(*sequence, chunk, std::min(budget, logits));
    budget -= proposed;
    logits -= proposed;
    Plan(*sequence, chunk, proposed, plan);
  }
  return std::min(budget, logits);
}

// So many tokens of a draft from outside are verified at once, at first and after one was accepted: what is
// computed in vain, once, at the first disagreement. A pass of more costs hardly less a token on CPUs.
constexpr size_t kFirstDraftWindow = 8, kDraftWindow = 16;

// How many tokens of the draft from outside go with a part of `chunk` known tokens, at most `most`.
uint32_t Scheduler::Propose(Sequence& sequence, uint32_t chunk, uint32_t most) {
  if (sequence.draft.empty() || chunk < sequence.remaining() || sequence.is_scoring()) return 0;
  const size_t window = sequence.stats.accepted_draft_tokens == 0 ? kFirstDraftWindow : kDraftWindow;
  return TakeRoom(sequence, std::min({size_t{most}, window, sequence.draft.size()}));
}

// How many tokens may be proposed behind the known ones, at most `most`; takes the blocks that they need, but
// leaves one for every running sequence. The last token of an answer is never computed.
uint32_t Scheduler::TakeRoom(Sequence& sequence, size_t most) {
  const size_t known = sequence.tokens.size();
  const size_t available = blocks_.available(), spare = available - std::min(available, running_.size());
  const size_t room = (sequence.blocks.size() + spare) * options_.block_tokens - known;
  const size_t left = sequence.answer_limit - sequence.generated();
  const size_t proposed = std::min({most, left - 1, room});
  const size_t blocks = BlocksFor(known + proposed, options_.block_tokens);
  if (blocks > sequence.blocks.size()) {
    CHECK(blocks_.Allocate(blocks - sequence.blocks.size(), sequence.blocks).ok());
  }
  return static_cast<uint32_t>(proposed);
}

// `proposed` tokens, behind those of the part.
void Scheduler::AddProposal(Sequence& sequence, std::span<const int32_t> proposed, PlannedSequence& part) {
  sequence.proposal.assign(part.tokens.begin(), part.tokens.end());
  sequence.proposal.insert(sequence.proposal.end(), proposed.begin(), proposed.end());
  part.tokens = sequence.proposal;
  part.proposed = static_cast<uint32_t>(proposed.size());
}

void Scheduler::Plan(Sequence& sequence, uint32_t chunk, uint32_t proposed, StepPlan& plan) {
  sequence.offered.clear();
  sequence.verified = 0;
  CHECK(sequence.branch.blocks.empty());  // the plan before was committed
  sequence.branch = {};
  PlannedSequence part;
  part.id = sequence.id;
  const std::span<const int32_t> all(sequence.tokens);
  part.context = all.first(sequence.computed);
  part.tokens = all.subspan(sequence.computed, chunk);
  if (proposed > 0) AddProposal(sequence, std::span(sequence.draft).first(proposed), part);
  part.first_position = sequence.computed;
  part.blocks = sequence.blocks;
  part.is_decode = sequence.is_decoding();
  const uint32_t end = sequence.computed + chunk;
  part.sample = end == all.size() && sequence.generated() < sequence.answer_limit;
  if (sequence.is_scoring()) {
    part.score = true;
    const uint32_t after = std::min(end + 1, sequence.prompt_tokens);
    part.score_targets = all.subspan(sequence.computed + 1, after - sequence.computed - 1);
  }
  part.sampling = &sequence.spec.sampling;
  part.counts = &sequence.counts;
  part.sample_index = sequence.generated();
  part.top_logprobs = sequence.spec.top_logprobs;
  part.signals = sequence.spec.signals;
  plan.sequences.push_back(part);
  planned_.push_back(&sequence);
}

std::vector<DraftWish> Scheduler::Wishes(const StepPlan& plan) {
  CHECK(plan.sequences.size() == planned_.size());
  std::vector<DraftWish> wishes;
  for (size_t i = 0; i < planned_.size(); ++i) {
    Sequence& sequence = *planned_[i];
    const PlannedSequence& part = plan.sequences[i];
    const uint32_t left = sequence.answer_limit - sequence.generated();
    const uint32_t most =
        std::min(sequence.spec.speculation.value_or(std::numeric_limits<uint32_t>::max()), left - 1);
    if (!part.is_decode || !part.sample || !sequence.draft.empty() || most == 0) continue;
    sequence.wished_for_draft = true;
    wishes.push_back({.part = i,
                      .request = {.id = sequence.id,
                                  .tokens = sequence.tokens,
                                  .prompt_tokens = sequence.prompt_tokens,
                                  .sampling = &sequence.spec.sampling,
                                  .counts = &sequence.counts,
                                  .most = most,
                                  .cache_salt = sequence.spec.cache_salt},
                      .left = left,
                      .acceptance = &sequence.acceptance,
                      .branch = &sequence.branch_acceptance});
  }
  return wishes;
}

uint32_t Scheduler::Offer(StepPlan& plan, size_t part, std::span<const int32_t> draft, uint32_t verified) {
  CHECK(part < planned_.size() && plan.sequences[part].id == planned_[part]->id);
  Sequence& sequence = *planned_[part];
  PlannedSequence& planned = plan.sequences[part];
  CHECK(planned.is_decode && planned.sample && planned.proposed == 0 && sequence.offered.empty());
  const std::span<const int32_t> known = Known(draft);
  sequence.offered.assign(known.begin(), known.end());
  const size_t most = std::min({size_t{verified}, sequence.offered.size(), size_t{draft_room_}});
  const uint32_t proposed = TakeRoom(sequence, most);
  draft_room_ -= proposed;
  sequence.verified = proposed;
  if (proposed == 0) return 0;
  AddProposal(sequence, std::span(sequence.offered).first(proposed), planned);
  planned.blocks = sequence.blocks;
  return proposed;
}

// The first tokens, as far as the model has them.
std::span<const int32_t> Scheduler::Known(std::span<const int32_t> guess) const {
  const auto end = std::ranges::find_if_not(guess, [this](int32_t token) {
    return token >= 0 && static_cast<uint32_t>(token) < options_.vocab_size;
  });
  return {guess.begin(), end};
}

// Blocks as for a draft (TakeRoom), but from the one of the last known token on they are its own.
uint32_t Scheduler::OfferBranch(StepPlan& plan, size_t part, std::span<const int32_t> branch,
                                uint32_t verified) {
  CHECK(part < planned_.size() && plan.sequences[part].id == planned_[part]->id);
  Sequence& sequence = *planned_[part];
  CHECK(sequence.branch.offered.empty());
  const std::span<const int32_t> known = Known(branch);
  if (known.empty() || sequence.offered.empty() || known[0] == sequence.offered[0]) return 0;
  sequence.branch.offered.assign(known.begin(), known.end());
  if (sequence.verified == 0 || draft_room_ < 2 || plan.sequences.size() >= options_.max_sequences) return 0;

  const size_t available = blocks_.available(), spare = available - std::min(available, running_.size());
  const uint32_t first = sequence.computed, shared = first / options_.block_tokens;
  if (spare == 0) return 0;
  const size_t wish = sequence.spec.speculation.value_or(std::numeric_limits<uint32_t>::max());
  const size_t most = std::min({size_t{verified}, known.size(), size_t{draft_room_} - 1,
                                wish - std::min<size_t>(wish, sequence.verified),
                                size_t{sequence.answer_limit - sequence.generated()} - 1,
                                (shared + spare) * options_.block_tokens - first - 1});
  if (most == 0) return 0;
  Sequence::Branch& own = sequence.branch;
  own.part = plan.sequences.size();
  own.tokens = {sequence.tokens.back()};
  own.tokens.insert(own.tokens.end(), known.begin(), known.begin() + static_cast<ptrdiff_t>(most));
  own.blocks.assign(sequence.blocks.begin(), sequence.blocks.begin() + shared);
  for (const BlockId block : own.blocks) blocks_.Share(block);
  CHECK(blocks_.Allocate(BlocksFor(first + 1 + most, options_.block_tokens) - shared, own.blocks).ok());
  if (const uint32_t rows = first % options_.block_tokens; rows > 0) {
    plan.transfers.push_back({.kind = BlockTransfer::Kind::kCopyRows,
                              .from = sequence.blocks[shared],
                              .to = own.blocks[shared],
                              .rows = rows});
  }
  PlannedSequence planned = plan.sequences[part];
  planned.tokens = own.tokens;
  planned.proposed = static_cast<uint32_t>(most);
  planned.blocks = own.blocks;
  planned.is_branch = true;
  plan.sequences.push_back(planned);
  draft_room_ -= planned.proposed + 1;
  Check();
  return planned.proposed + 1;
}

void Scheduler::Commit(const StepPlan& plan, StepResult result, MonoTime now) {
  CHECK(plan.sequences.size() >= planned_.size() && result.outputs.size() == plan.sequences.size());
  for (size_t i = 0; i < planned_.size(); ++i) {
    CHECK(plan.sequences[i].id == planned_[i]->id);
    const size_t chosen = ChooseBranch(*planned_[i], i, result);
    Apply(*planned_[i], plan.sequences[chosen], result.outputs[chosen], now);
  }
  planned_.clear();
  std::erase_if(running_, [](const SequencePtr& sequence) { return sequence->is_finished; });
  Check();
}

// Which part of the plan the sequence goes on with: its own, or that of its branch, where more of that was
// accepted. The other one's blocks are given back, and what the prefix cache has of its last rows, which are
// found in the chosen one's from now on.
size_t Scheduler::ChooseBranch(Sequence& sequence, size_t part, const StepResult& result) {
  Sequence::Branch& branch = sequence.branch;
  if (branch.blocks.empty()) return part;
  const SequenceOutput &own = result.outputs[part], &other = result.outputs[branch.part];
  const bool is_other = own.error.ok() && other.tokens.size() > own.tokens.size();
  if (is_other) {
    std::swap(sequence.blocks, branch.blocks);
    blocks_.Forget(branch.blocks[sequence.computed / options_.block_tokens]);
  }
  blocks_.Release(branch.blocks);
  return is_other ? branch.part : part;
}

void Scheduler::Apply(Sequence& sequence, const PlannedSequence& planned, const SequenceOutput& output,
                      MonoTime now) {
  CHECK(!output.error.ok() ||
        (output.tokens.empty() != planned.sample && output.scores.size() == planned.score_targets.size()));
  CHECK(output.tokens.size() <= planned.proposed + 1);
  const uint32_t first = sequence.computed;
  const std::span<const SampledToken> tokens = Extend(sequence, output.tokens);
  if (planned.is_decode) {
    sequence.acceptance.Age();
    sequence.branch_acceptance.Age();
  }
  if (!sequence.offered.empty()) Compare(sequence, tokens);
  const bool has_ended = !tokens.empty() && EndsAnswer(sequence.spec, options_, tokens.back().token);
  if (!output.error.ok() && !has_ended) {  // else nobody would have computed what failed
    ForgetBlocks(sequence);
    Send(sequence, tokens, now);
    return Finish(sequence, FinishReason::kError, output.error, now);
  }

  // Behind the last known token that was computed: what was proposed and not accepted is as good as nothing.
  sequence.computed =
      static_cast<uint32_t>(planned.sample ? sequence.tokens.size() - 1 : first + planned.tokens.size());
  if (!planned.is_decode) totals_.prompt_tokens += planned.tokens.size() - planned.proposed;
  if (!sequence.decoding.has_value() && sequence.computed >= sequence.given_tokens) sequence.decoding = now;
  if (options_.prefix_cache) Publish(sequence);
  if (planned.proposed > 0) TrimBlocks(sequence);
  if (planned.score) sequence.scored = std::min(sequence.computed, sequence.prompt_tokens);
  if (!output.scores.empty()) sequence.sink->OnPromptScores(first + 1, output.scores);
  Send(sequence, tokens, now);
  if (has_ended) return Finish(sequence, FinishReason::kStop, {}, now);
  if (sequence.computed >= sequence.prompt_tokens && sequence.generated() >= sequence.answer_limit) {
    Finish(sequence, FinishReason::kLength, {}, now);
  }
}

// Takes chosen tokens into the answer, up to its end: those are returned. The draft loses what it has in
// common with them, and the rest as well when they go on otherwise.
std::span<const SampledToken> Scheduler::Extend(Sequence& sequence, std::span<const SampledToken> chosen) {
  std::vector<int32_t>& draft = sequence.draft;
  size_t taken = 0, accepted = 0;
  bool has_ended = false;
  while (taken < chosen.size() && !has_ended) {
    const int32_t token = chosen[taken].token;
    if (accepted == taken && accepted < draft.size() && draft[accepted] == token) ++accepted;
    sequence.tokens.push_back(token);
    sequence.counts.AddGenerated(token);
    has_ended = EndsAnswer(sequence.spec, options_, token);
    ++taken;
  }
  const bool is_over = has_ended || accepted < taken;
  const size_t done = is_over ? draft.size() : accepted;
  draft.erase(draft.begin(), draft.begin() + static_cast<ptrdiff_t>(done));
  sequence.stats.accepted_draft_tokens += static_cast<uint32_t>(accepted);
  totals_.accepted_draft_tokens += accepted;
  totals_.rejected_draft_tokens += done - accepted;
  return chosen.first(taken);
}

// What was offered, with what the answer has got.
void Scheduler::Compare(Sequence& sequence, std::span<const SampledToken> tokens) {
  DraftOutcome outcome{CompareGuess(sequence.offered, sequence.verified, tokens)};
  if (sequence.verified > 0 && !tokens.empty()) outcome.gained = static_cast<uint32_t>(tokens.size()) - 1;
  sequence.acceptance.Add(outcome.compared, outcome.accepted);
  const auto count = [&](const GuessOutcome& guess) {
    sequence.stats.speculated_tokens += guess.verified;
    if (guess.verified > 0) sequence.stats.accepted_speculated_tokens += guess.accepted;
  };
  count(outcome);
  if (const Sequence::Branch& branch = sequence.branch; !branch.offered.empty()) {
    outcome.branch = CompareGuess(branch.offered, branch.verified(), tokens);
    sequence.branch_acceptance.Add(outcome.branch.compared, std::min(outcome.branch.accepted, 1u));
    count(outcome.branch);
  }
  draft_outcomes_.push_back(outcome);
}

// The blocks go that hold only what was proposed and not accepted.
void Scheduler::TrimBlocks(Sequence& sequence) {
  const size_t used = BlocksFor(sequence.computed, options_.block_tokens);
  while (sequence.blocks.size() > used) {
    blocks_.Release(sequence.blocks.back());
    sequence.blocks.pop_back();
  }
}

// The last tokens of the answer go out.
void Scheduler::Send(Sequence& sequence, std::span<const SampledToken> tokens, MonoTime now) {
  if (tokens.empty()) return;
  const auto count = static_cast<uint32_t>(tokens.size());
  const bool is_first = !sequence.last_token.has_value();
  if (!sequence.spec.is_background) {
    if (is_first) latencies_.first_token.push_back(Seconds(now - sequence.arrived));
    const double share = is_first ? 0 : Seconds(now - *sequence.last_token) / count;
    latencies_.inter_token.insert(latencies_.inter_token.end(), is_first ? count - 1 : count, share);
  }
  sequence.last_token = now;
  totals_.generated_tokens += count;
  if (!sequence.offered.empty()) {
    sequence.sink->OnDraftRecord(
        {.drafts = sequence.acceptance.state(), .branches = sequence.branch_acceptance.state()});
  }
  sequence.sink->OnTokens(sequence.generated() - count, tokens);
}

// What led to an error is not used again, whoever computed it, nor what a preemption left of it. Whatever
// holds the rows that were copied goes first: it is found behind the sequence's own blocks.
void Scheduler::ForgetBlocks(Sequence& sequence) {
  if (options_.prefix_cache) {
    ExtendBlockKeys(sequence.root, sequence.tokens, options_.block_tokens, sequence.keys);
  }
  const uint32_t copied = sequence.copied;
  const auto copy = [&] { return blocks_.Match(sequence.root, sequence.keys, sequence.tokens, copied); };
  for (PrefixMatch match = copy(); match.tail >= 0 && match.tokens == copied; match = copy())
    blocks_.Forget(match.tail);
  blocks_.ForgetAlike(sequence.root, sequence.keys, sequence.tokens);
}

// All computed rows can be found from now on, also those that came back from the host.
void Scheduler::Publish(Sequence& sequence) {
  const uint32_t block_tokens = options_.block_tokens;
  const std::span<const int32_t> computed = std::span(sequence.tokens).first(sequence.computed);
  ExtendBlockKeys(sequence.root, computed, block_tokens, sequence.keys);
  for (size_t i = sequence.published; i * block_tokens < computed.size(); ++i) {
    const auto tokens = computed.subspan(i * block_tokens);
    const bool is_whole = tokens.size() >= block_tokens;
    sequence.blocks[i] = blocks_.Publish(sequence.blocks[i], i == 0 ? sequence.root : sequence.keys[i - 1],
                                         tokens.first(std::min<size_t>(tokens.size(), block_tokens)),
                                         is_whole ? std::optional(sequence.keys[i]) : std::nullopt);
    if (!is_whole) break;
    sequence.published = static_cast<uint32_t>(i) + 1;
    Withdraw(sequence, sequence.keys[i]);
  }
}

void Scheduler::Finish(Sequence& sequence, FinishReason reason, const Status& error, MonoTime now) {
  WithdrawPromises(sequence);
  blocks_.Release(sequence.branch.blocks);  // of a plan that nobody computed
  blocks_.Release(sequence.blocks, /*keeps_tail=*/!sequence.spec.is_background);
  free_host_blocks_.insert(free_host_blocks_.end(), sequence.host_blocks.begin(), sequence.host_blocks.end());
  sequence.host_blocks.clear();
  sequence.is_finished = true;
  if (sequence.wished_for_draft)
    ended_drafted_.push_back({.id = sequence.id, .tokens = sequence.generated()});
  switch (reason) {
    case FinishReason::kStop:
    case FinishReason::kLength:
      ++totals_.finished;
      break;
    case FinishReason::kCancelled:
      ++totals_.cancelled;
      break;
    case FinishReason::kError:
      ++totals_.failed;
      break;
  }
  // A phase that was not reached took no time; the one it ended in lasted until now.
  const MonoTime admitted = sequence.admitted.value_or(now), decoding = sequence.decoding.value_or(now);
  SequenceResult result{.reason = reason, .error = error, .stats = sequence.stats};
  result.stats.generated_tokens = sequence.generated();
  result.stats.queue_seconds = Seconds(admitted - sequence.arrived);
  result.stats.prefill_seconds = Seconds(decoding - admitted);
  result.stats.decode_seconds = Seconds(now - decoding);
  sequence.sink->OnFinish(result);
}

void Scheduler::CancelAll(const Status& status, MonoTime now) {
  planned_.clear();
  for (const SequencePtr& sequence : running_) Finish(*sequence, FinishReason::kCancelled, status, now);
  running_.clear();
  while (!waiting_.empty()) {
    Finish(*waiting_.back(), FinishReason::kCancelled, status, now);
    Dequeue(*waiting_.back());
  }
  Check();
}

SchedulerStats Scheduler::Stats() const {
  SchedulerStats stats = totals_;
  stats.running = static_cast<uint32_t>(running_.size());
  stats.waiting = static_cast<uint32_t>(waiting_.size());
  stats.paused = static_cast<uint32_t>(
      std::ranges::count_if(running_, [](const SequencePtr& sequence) { return sequence->is_paused; }));
  stats.waiting_prompt_tokens = waiting_tokens_;
  stats.background_running = static_cast<uint32_t>(std::ranges::count_if(
      running_, [](const SequencePtr& sequence) { return sequence->spec.is_background; }));
  stats.background_waiting = background_waiting_;
  stats.background_prompt_tokens = background_tokens_;
  stats.free_blocks = static_cast<uint32_t>(blocks_.free());
  stats.held_blocks = static_cast<uint32_t>(blocks_.held());
  stats.cached_blocks = static_cast<uint32_t>(blocks_.cached());
  stats.total_blocks = static_cast<uint32_t>(blocks_.total());
  stats.host_blocks = options_.host_blocks;
  stats.swapped_blocks = options_.host_blocks - static_cast<uint32_t>(free_host_blocks_.size());
  return stats;
}

void Scheduler::Check() const {
  CHECK(blocks_.free() + blocks_.held() + blocks_.cached() == blocks_.total());
  if (!options_.audits) return;
  std::vector<const BlockTable*> holders;
  for (const SequencePtr& sequence : running_) {
    holders.push_back(&sequence->blocks);
    holders.push_back(&sequence->branch.blocks);
    CHECK(sequence->generated() + sequence->draft.size() <= sequence->answer_limit);
  }
  blocks_.Audit(holders);
  size_t swapped = 0, following = 0;
  for (const SequencePtr& sequence : waiting_) {
    CHECK(sequence->blocks.empty() && waiting_[sequence->place] == sequence);
    swapped += sequence->host_blocks.size();
    following += sequence->following.has_value();
  }
  CHECK(swapped + free_host_blocks_.size() == options_.host_blocks);
  CHECK(queue_.size() + following == waiting_.size());
  size_t followers = 0;
  for (const auto& [key, promised] : promised_) {
    followers += promised.followers.size();
    CHECK(promised.by->is_running && !promised.by->is_paused);
  }
  CHECK(followers == following && following_.size() == following);
  if (running_.empty()) CHECK(blocks_.held() == 0 && promised_.empty());
}

}  // namespace terrace
