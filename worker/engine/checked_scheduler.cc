#include "worker/engine/checked_scheduler.h"

#include <algorithm>
#include <map>
#include <utility>

namespace terrace {
namespace {

// Positions whose logits one step computes at most for scores and drafts.
constexpr uint32_t kMaxExtraLogits = 128;
// Tokens of a draft from outside that are verified at once, before one was accepted and after.
constexpr size_t kFirstDraftWindow = 8, kDraftWindow = 16;
// Partly equal blocks that a match looks at.
constexpr size_t kMaxSiblings = 8;

// No two steps are scheduled at one time.
constexpr Duration kStepGap = std::chrono::microseconds(1);

Duration ToDuration(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

class RecordingSink : public TokenSink {
 public:
  explicit RecordingSink(size_t resumed) : resumed_(resumed) {}

  void OnStarted(uint32_t cached_tokens) override {
    CHECK(ends == 0 && !cached.has_value());
    cached = cached_tokens;
  }
  void OnTokens(uint32_t first_index, std::span<const SampledToken> sent) override {
    CHECK(ends == 0 && cached.has_value() && first_index == resumed_ + tokens.size());
    for (const SampledToken& token : sent) tokens.push_back(token.token);
  }
  void OnPromptScores(uint32_t first_index, std::span<const SampledToken> sent) override {
    CHECK(ends == 0 && first_index == scores.size() + 1);
    for (const SampledToken& token : sent) scores.push_back(token.token);
  }
  void OnFinish(const SequenceResult& value) override {
    ++ends;
    result = value;
    CHECK(cached.value_or(0) == result.stats.cached_tokens);
  }
  bool is_closed() const override { return is_closed_now; }
  bool is_full() const override { return is_full_now; }

  std::optional<uint32_t> cached;
  std::vector<int32_t> tokens, scores;
  SequenceResult result;
  int ends = 0;
  bool is_closed_now = false, is_full_now = false;

 private:
  const size_t resumed_;
};

size_t CommonTokens(std::span<const int32_t> a, std::span<const int32_t> b) {
  return static_cast<size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

}  // namespace

struct CheckedScheduler::Sequence {
  explicit Sequence(const SequenceSpec& its_spec)
      : spec(its_spec), sink(std::make_shared<RecordingSink>(spec.resume.size())) {}

  // What the oracle says.
  size_t id = 0;
  SequenceSpec spec;  // its draft is cut
  MonoTime arrived;
  std::vector<int32_t> tokens;  // of the prompt, then of the whole answer
  uint64_t answer_limit = 0;
  bool stops = false;  // at an end token, not at its length
  bool fails = false;
  size_t answer() const { return tokens.size() - spec.prompt.size(); }
  size_t given() const { return spec.prompt.size() + spec.resume.size(); }
  size_t known() const { return given() + sink->tokens.size(); }              // to the scheduler
  size_t accepted() const { return CommonTokens(spec.draft, sink->tokens); }  // of the draft, so far
  // Tokens that may be proposed: of a draft that was right so far; nothing follows an answer's last token.
  size_t proposable() const {
    const size_t sent = sink->tokens.size();
    if (accepted() < sent) return 0;
    const size_t window = sent == 0 ? kFirstDraftWindow : kDraftWindow;
    return std::min({window, spec.draft.size() - sent, answer_limit - spec.resume.size() - sent - 1});
  }

  // What was seen.
  std::shared_ptr<RecordingSink> sink;
  bool is_alone = true;  // nobody meddled
  bool was_full = false;
  bool is_checked = false;   // its end was
  bool is_decoding = false;  // when the last step was done
  size_t last_planned = 0;   // step, from 1
  uint32_t computed = 0;     // when the last step was done
  uint32_t scored = 0;       // positions
  uint32_t recomputations = 0;
  std::optional<size_t> first_planned;
  std::vector<std::pair<size_t, uint32_t>> longest;  // most positions computed so far, by step
  size_t dead_steps = 0;
};

struct CheckedScheduler::Before {
  SchedulerStats stats;
  std::optional<size_t> first_in_rank;
};

CheckedScheduler::CheckedScheduler(const Options& options)
    : options_(options),
      scheduler_([&] {
        SchedulerOptions with_audits = options.scheduler;
        with_audits.audits = true;
        return with_audits;
      }()),
      executor_({.vocab_size = options.scheduler.vocab_size,
                 .block_tokens = options.scheduler.block_tokens,
                 .checked_positions = options.scheduler.context_length,
                 .fail_sequence = [this](const PlannedSequence& part) { return Failure(part); },
                 .time = options.time,
                 .on_step_time = [this](double seconds) { clock_.Advance(ToDuration(seconds)); }}),
      random_(options.draft_seed) {}

CheckedScheduler::~CheckedScheduler() = default;

Status CheckedScheduler::Failure(const PlannedSequence& part) const {
  const uint64_t seed = part.sampling->seed;
  if (options_.failing_seeds == 0 || seed % options_.failing_seeds != 0) return {};
  const uint64_t at = seed / options_.failing_seeds % 4;  // 3: the first chunk
  return at == 3 || (part.sample && part.sample_index == at)
             ? WithReason(Internal("logit 3 is NaN"), "numeric_error")
             : Status();
}

std::optional<size_t> CheckedScheduler::Add(SequenceSpec spec) {
  const SchedulerOptions& options = scheduler_.options();
  const uint64_t limit =
      std::min<uint64_t>(options.context_length, uint64_t{options.blocks} * options.block_tokens + 1);
  const uint64_t least = spec.max_tokens > 0 ? spec.max_tokens
                         : spec.score_prompt ? 0
                                             : spec.resume.size() + 1;
  const uint64_t most = spec.max_tokens > 0 || spec.score_prompt
                            ? spec.max_tokens
                            : limit - std::min(limit, spec.prompt.size());
  const auto ends = [&](int32_t token) {
    return std::ranges::count(spec.stop_tokens, token) > 0 ||
           (!spec.ignore_eos && std::ranges::count(options.end_tokens, token) > 0);
  };
  const Status valid = Scheduler::Validate(spec, options);
  const uint64_t positions = spec.prompt.size() + std::max<uint64_t>(least, 1) - 1;
  const bool fits = !spec.prompt.empty() && spec.prompt.size() + least <= limit &&
                    positions <= uint64_t{options.blocks} * options.block_tokens;
  const bool goes_on =
      spec.resume.empty() || (spec.resume.size() < most && std::ranges::none_of(spec.resume, ends));
  Expect(valid.ok() == (fits && goes_on), "a prompt of ", spec.prompt.size(), " with ", least, ", ",
         spec.resume.size(), " resumed: ", Message(valid));
  if (!valid.ok()) return std::nullopt;

  auto sequence = std::make_unique<Sequence>(spec);
  sequence->id = sequences_.size();
  sequence->arrived = clock_.Now();
  sequence->tokens = spec.prompt;
  sequence->tokens.insert(sequence->tokens.end(), spec.resume.begin(), spec.resume.end());
  sequence->answer_limit = most;
  sequence->spec.draft.resize(std::min<size_t>(spec.draft.size(), most - spec.resume.size()));
  for (uint64_t i = spec.resume.size(); i < most && !sequence->stops; ++i) {
    sequence->tokens.push_back(FakeExecutor::AnswerToken(spec.sampling.seed, i, options.vocab_size));
    sequence->stops = ends(sequence->tokens.back());
  }
  if (options_.failing_seeds > 0 && spec.sampling.seed % options_.failing_seeds == 0) {
    const uint64_t at = spec.sampling.seed / options_.failing_seeds % 4;
    sequence->fails = at == 3 || (at >= spec.resume.size() && at < sequence->answer());
    if (sequence->fails) sequence->tokens.resize(at == 3 ? sequence->given() : spec.prompt.size() + at);
  }
  sequence->is_alone = !spec.deadline.has_value();
  live_.push_back(sequence->id);
  scheduler_.Add(std::move(spec), sequence->sink, sequence->arrived);
  sequences_.push_back(std::move(sequence));
  return sequences_.size() - 1;
}

void CheckedScheduler::Close(size_t sequence) {
  if (has_ended(sequence)) return;
  sequences_[sequence]->sink->is_closed_now = true;
  sequences_[sequence]->is_alone = false;
}

void CheckedScheduler::SetFull(size_t sequence, bool is_full) {
  sequences_[sequence]->sink->is_full_now = is_full;
  sequences_[sequence]->was_full |= is_full;
}

void CheckedScheduler::CancelAll() {
  for (const size_t id : live_) sequences_[id]->is_alone = false;
  scheduler_.CancelAll(WithReason(Unavailable("stopping"), "draining"), clock_.Now());
  CheckEnds();
  Expect(live_.empty() && scheduler_.idle(), "sequences outlive CancelAll");
  Expect(stats().held_blocks == 0 && stats().swapped_blocks == 0, "blocks outlive CancelAll");
}

bool CheckedScheduler::has_ended(size_t sequence) const { return sequences_[sequence]->sink->ends > 0; }

const SequenceResult& CheckedScheduler::ResultOf(size_t sequence) const {
  CHECK(has_ended(sequence));
  return sequences_[sequence]->sink->result;
}

std::vector<int32_t> CheckedScheduler::TokensOf(size_t sequence) const {
  const Sequence& its = *sequences_[sequence];
  const auto known = std::span(its.tokens).first(std::min(its.known(), its.tokens.size()));
  return {known.begin(), known.end()};
}

bool CheckedScheduler::IsDead(const Sequence& sequence) const {
  return sequence.sink->is_closed_now ||
         (sequence.spec.deadline.has_value() && *sequence.spec.deadline <= clock_.Now());
}

bool CheckedScheduler::RanksBefore(const Sequence& a, const Sequence& b) const {
  return std::tuple(-a.spec.priority, a.sink->is_full_now, a.id) <
         std::tuple(-b.spec.priority, b.sink->is_full_now, b.id);
}

// Of all that live, whether they run or wait.
std::optional<size_t> CheckedScheduler::FirstInRank() const {
  const Sequence* first = nullptr;
  for (const size_t id : live_) {
    const Sequence& sequence = *sequences_[id];
    if (!IsDead(sequence) && (first == nullptr || RanksBefore(sequence, *first))) first = &sequence;
  }
  if (first == nullptr || first->sink->is_full_now) return std::nullopt;
  return first->id;
}

bool CheckedScheduler::Step() {
  clock_.Advance(kStepGap);
  ++step_;
  steps_.push_back(clock_.Now());
  const Before before{.stats = stats(), .first_in_rank = FirstInRank()};
  StepPlan plan = scheduler_.Schedule(clock_.Now());
  CheckEnds();
  CheckPlan(plan, before);
  if (plan.empty()) return false;
  if (options_.draft_seed > 0 && violations_.empty()) OfferDrafts(plan);
  StepResult result = executor_.Run(plan);
  NoteResults(plan);
  scheduler_.Commit(plan, std::move(result), clock_.Now());
  CheckOutcomes();
  for (const PlannedSequence& part : plan.sequences) {
    Sequence& sequence = *sequences_[part.id];
    if (sequence.sink->ends > 0 && sequence.sink->result.reason == FinishReason::kError) continue;
    // Of what was proposed only what was accepted was computed.
    sequence.computed =
        static_cast<uint32_t>(part.sample ? sequence.known() - 1 : part.first_position + part.tokens.size());
    sequence.is_decoding =
        sequence.known() > sequence.spec.prompt.size() && sequence.computed + 1 == sequence.known();
    if (part.score) sequence.scored = sequence.computed;
    if (!part.is_decode) prompt_tokens_ += part.tokens.size() - part.proposed;
    if (sequence.longest.empty() || sequence.longest.back().second < sequence.computed)
      sequence.longest.emplace_back(step_, sequence.computed);
  }
  CheckEnds();
  return true;
}

void CheckedScheduler::CheckPlan(const StepPlan& plan, const Before& before) {
  std::set<uint64_t> ids;
  for (const PlannedSequence& part : plan.sequences) {
    Expect(ids.insert(part.id).second, "sequence ", part.id, " is planned twice");
    Expect(part.id < sequences_.size() && !has_ended(part.id), "sequence ", part.id, " does not run");
    if (!violations_.empty()) return;
    CheckPart(part);
  }
  for (const size_t id : live_) {
    Sequence& sequence = *sequences_[id];
    sequence.dead_steps = IsDead(sequence) ? sequence.dead_steps + 1 : 0;
    Expect(sequence.dead_steps < 3 + live_.size() / 64, "sequence ", id, " is dead but stays");
    Expect(sequence.dead_steps == 0 || sequence.last_planned + 1 != step_, "sequence ", id,
           " ran, is dead, and stays");
  }
  CheckPreemptions(plan, before);
  CheckBudget(plan);
  CheckBlocks(plan);
  if (plan.empty()) CheckEmptyPlan();
  for (const PlannedSequence& part : plan.sequences) sequences_[part.id]->last_planned = step_;
}

void CheckedScheduler::CheckPart(const PlannedSequence& part) {
  Sequence& sequence = *sequences_[part.id];
  const SequenceSpec& spec = sequence.spec;
  const std::span<const int32_t> known =
      std::span(sequence.tokens).first(std::min(sequence.known(), sequence.tokens.size()));
  const size_t known_tokens = part.tokens.size() - part.proposed;  // of the part
  const size_t end = part.first_position + known_tokens;
  Expect(part.tokens.size() > part.proposed && end <= known.size(), "sequence ", part.id, " computes up to ",
         end);
  if (part.tokens.size() <= part.proposed || end > known.size()) return;
  Expect(std::ranges::equal(part.context, known.first(part.first_position)) &&
             std::ranges::equal(part.tokens.first(known_tokens),
                                known.subspan(part.first_position, known_tokens)),
         "sequence ", part.id, " computes other tokens than its own");
  const bool is_done = end == known.size();
  const size_t sent = sequence.sink->tokens.size();
  const bool may_propose = is_done && !part.score && part.proposed <= sequence.proposable();
  Expect(part.proposed == 0 || may_propose, "sequence ", part.id, " proposes ", part.proposed);
  if (part.proposed > 0 && may_propose) {
    Expect(std::ranges::equal(part.tokens.last(part.proposed),
                              std::span(spec.draft).subspan(sent, part.proposed)),
           "sequence ", part.id, " proposes other tokens than its draft's");
  }
  Expect(!IsDead(sequence), "sequence ", part.id, " is dead, but planned");
  Expect(!sequence.sink->is_full_now, "sequence ", part.id, " is full, but planned");
  Expect(part.sampling->seed == spec.sampling.seed && part.top_logprobs == spec.top_logprobs, "sequence ",
         part.id, " has another's parameters");
  Expect(part.blocks.size() >= BlocksFor(end + part.proposed, options_.scheduler.block_tokens), "sequence ",
         part.id, " lacks blocks");
  const size_t answered = known.size() - spec.prompt.size();
  Expect(part.is_decode == (answered > 0 && part.first_position + 1 == known.size()), "sequence ", part.id,
         " decodes, or does not");
  Expect(part.sample == (is_done && answered < sequence.answer_limit), "sequence ", part.id, " samples at ",
         end, ", or does not");
  if (part.score) {
    Expect(spec.score_prompt && part.first_position == sequence.scored && end <= spec.prompt.size(),
           "sequence ", part.id, " scores from ", part.first_position);
    const size_t targets = std::min(end + 1, spec.prompt.size()) - part.first_position - 1;
    Expect(std::ranges::equal(part.score_targets, known.subspan(part.first_position + 1, targets)),
           "sequence ", part.id, " scores others");
  } else {
    Expect(part.score_targets.empty() &&
               (!spec.score_prompt || part.first_position >= spec.prompt.size() || end <= sequence.scored),
           "sequence ", part.id, " does not score");
  }
  if (!sequence.first_planned.has_value()) {
    sequence.first_planned = step_;
    Expect(part.first_position == 0 || options_.scheduler.prefix_cache, "sequence ", part.id, " starts at ",
           part.first_position);
  } else if (part.first_position != sequence.computed) {
    ++sequence.recomputations;
  }
}

void CheckedScheduler::CheckPreemptions(const StepPlan& plan, const Before& before) {
  const SchedulerStats after = stats();
  const uint64_t preempted = after.recompute_preemptions + after.swap_preemptions -
                             before.stats.recompute_preemptions - before.stats.swap_preemptions;
  std::map<uint64_t, const PlannedSequence*> parts;
  for (const PlannedSequence& part : plan.sequences) parts[part.id] = &part;
  std::vector<const Sequence*> missing;
  for (const size_t id : live_) {
    const Sequence& sequence = *sequences_[id];
    const bool decoded = sequence.last_planned + 1 == step_ && sequence.is_decoding;
    if (decoded && !sequence.sink->is_full_now && !parts.contains(id)) missing.push_back(&sequence);
  }
  Expect(missing.size() <= preempted, missing.size(), " sequences do not decode, ", preempted,
         " were preempted");
  if (missing.size() == preempted) {  // so the others were not
    for (const auto& [id, part] : parts) {
      for (const Sequence* victim : missing) {
        Expect(sequences_[id]->last_planned + 1 != step_ || RanksBefore(*sequences_[id], *victim),
               "sequence ", victim->id, " gave way, ", id, " did not");
      }
    }
  }
  if (before.first_in_rank.has_value()) {
    const Sequence& first = *sequences_[*before.first_in_rank];
    if (first.last_planned + 1 == step_ && !has_ended(first.id)) {
      const auto part = parts.find(first.id);
      Expect(!first.is_decoding || part != parts.end(), "sequence ", first.id,
             ", the first, does not decode");
      Expect(part == parts.end() || part->second->first_position == first.computed, "sequence ", first.id,
             ", the first, starts again");
    }
  }
  std::set<BlockId> out;
  for (const BlockTransfer& transfer : plan.transfers) {
    if (transfer.kind == BlockTransfer::Kind::kToHost) out.insert(transfer.to);
    const bool is_back = transfer.kind == BlockTransfer::Kind::kFromHost && out.contains(transfer.from);
    Expect(!is_back, "host block ", transfer.from, " goes out and back in one step");
  }
}

void CheckedScheduler::CheckBudget(const StepPlan& plan) {
  const SchedulerOptions& options = options_.scheduler;
  const SchedulerStats now = stats();
  uint32_t tokens = 0, extra_logits = 0;
  for (const PlannedSequence& part : plan.sequences) {
    tokens += static_cast<uint32_t>(part.tokens.size());
    extra_logits += part.score ? static_cast<uint32_t>(part.tokens.size()) : part.proposed;
  }
  const bool is_full = tokens == options.max_step_tokens, has_all_logits = extra_logits == kMaxExtraLogits;
  std::vector<const Sequence*> cut;
  for (const PlannedSequence& part : plan.sequences) {
    const Sequence& sequence = *sequences_[part.id];
    const size_t computed = part.first_position + part.tokens.size(), end = computed - part.proposed;
    const bool is_limited = part.score ? has_all_logits || end == sequence.spec.prompt.size()
                                       : sequence.spec.score_prompt && end == sequence.scored;
    if (end != sequence.known() && !is_limited) cut.push_back(&sequence);
    if (!part.sample || part.score) continue;
    // One block is left for every running sequence.
    const bool lacks_blocks = computed == part.blocks.size() * options.block_tokens &&
                              now.free_blocks + now.cached_blocks <= now.running;
    Expect(part.proposed == sequence.proposable() || is_full || has_all_logits || lacks_blocks, "sequence ",
           part.id, " proposes ", part.proposed, " of ", sequence.proposable());
  }
  Expect(tokens <= options.max_step_tokens, tokens, " tokens in a step");
  Expect(extra_logits <= kMaxExtraLogits, extra_logits, " tokens scored and proposed in a step");
  Expect(now.running <= options.max_sequences, now.running, " sequences run");
  Expect(cut.size() <= 1, cut.size(), " prompts are planned in part");
  Expect(cut.empty() || is_full, "a prompt is cut, but only ", tokens, " tokens used");
  Expect(is_full || has_all_logits || plan.sequences.size() == now.running - now.paused,
         plan.sequences.size(), " of ", now.running - now.paused, " planned, but only ", tokens,
         " tokens used");
  for (const PlannedSequence& part : plan.sequences) {
    if (!cut.empty() && (!part.is_decode || part.proposed > 0))
      Expect(sequences_[part.id]->spec.priority >= cut[0]->spec.priority, "sequence ", part.id,
             " goes before its better");
  }
}

void CheckedScheduler::CheckBlocks(const StepPlan& plan) {
  const SchedulerStats now = stats();
  Expect(now.free_blocks + now.held_blocks + now.cached_blocks == now.total_blocks, "blocks do not add up");
  Expect(options_.scheduler.prefix_cache || now.cached_blocks == 0, "blocks are cached");
  if (now.free_blocks * 2 < now.total_blocks) is_roomy_ = false;
  std::map<BlockId, int> readers;
  size_t planned = 0;
  for (const PlannedSequence& part : plan.sequences) {
    planned += part.is_branch ? 0 : 1;
    for (const BlockId block : part.blocks) ++readers[block];
  }
  for (const PlannedSequence& part : plan.sequences) {
    const size_t size = options_.scheduler.block_tokens;
    for (size_t i = part.first_position / size; i * size < part.first_position + part.tokens.size(); ++i)
      Expect(readers[part.blocks[i]] == 1, "KV block ", part.blocks[i], " is written and shared");
  }
  if (planned == now.running)
    Expect(readers.size() == now.held_blocks, now.held_blocks, " blocks held, ", readers.size(), " in use");
  Expect(now.running > 0 || now.held_blocks == 0, "blocks are held by nobody");
}

void CheckedScheduler::CheckEmptyPlan() {
  for (const size_t id : live_) {
    const Sequence& sequence = *sequences_[id];
    if (sequence.sink->is_full_now || IsDead(sequence)) continue;
    const bool is_held_up = std::ranges::any_of(live_, [&](size_t other) {
      return sequences_[other]->sink->is_full_now &&
             sequences_[other]->spec.priority > sequence.spec.priority;
    });
    Expect(is_held_up, "the plan is empty, but sequence ", id, " could go on");
  }
  Expect(scheduler_.Schedule(clock_.Now()).empty(), "the plan was empty, but a second one is not");
}

// Each right up to some token, then anything; some are only looked at.
void CheckedScheduler::OfferDrafts(StepPlan& plan) {
  const SchedulerOptions& options = options_.scheduler;
  const SchedulerStats before = stats();
  std::set<size_t> wished;
  OfferedDrafts drafts;
  uint32_t offered = 0;
  const uint32_t room = scheduler_.draft_room();
  for (const DraftWish& wish : scheduler_.Wishes(plan)) {
    const PlannedSequence& part = plan.sequences[wish.part];
    const Sequence& sequence = *sequences_[part.id];
    Expect(wished.insert(wish.part).second && part.is_decode && part.sample && part.proposed == 0,
           "sequence ", part.id, " wishes for a draft");
    Expect(wish.request.id == part.id &&
               std::ranges::equal(wish.request.tokens, std::span(sequence.tokens).first(sequence.known())),
           "sequence ", part.id, " wishes for another's draft");
    Expect(wish.left + sequence.known() == sequence.spec.prompt.size() + sequence.answer_limit &&
               wish.request.most <= wish.left - 1,
           "sequence ", part.id, " has ", wish.left, " tokens left");
    if (Draw(0, 3) == 0) continue;
    std::vector<int32_t> draft;
    const uint32_t agreeing = Draw(0, 3) == 0 ? 0 : Draw(0, 12);
    const uint32_t length = agreeing + Draw(0, 1) * Draw(0, 6);
    const size_t answered = sequence.known() - sequence.spec.prompt.size();
    for (uint32_t i = 0; i < length; ++i) {
      const int32_t right = FakeExecutor::AnswerToken(part.sampling->seed, answered + i, options.vocab_size);
      draft.push_back(i < agreeing ? right : (right + 1) % static_cast<int32_t>(options.vocab_size));
    }
    const uint32_t wanted = Draw(0, 3) == 0 ? 0 : length;
    const uint32_t left_room = scheduler_.draft_room();
    const uint32_t proposed = scheduler_.Offer(plan, wish.part, draft, wanted);
    offered += proposed;
    const SchedulerStats now = stats();
    const bool lacks_blocks =
        part.first_position + part.tokens.size() == part.blocks.size() * options.block_tokens &&
        now.free_blocks + now.cached_blocks <= now.running;
    Expect(proposed == std::min({wanted, left_room, wish.left - 1}) || (proposed < wanted && lacks_blocks),
           "sequence ", part.id, " proposes ", proposed, " of ", wanted);
    Expect(part.proposed == proposed && part.tokens.size() == 1 + proposed &&
               std::ranges::equal(part.tokens.last(proposed), std::span(draft).first(proposed)),
           "sequence ", part.id, " proposes other tokens than were offered");
    Expect(proposed == 0 || now.free_blocks + now.cached_blocks >= now.running ||
               now.held_blocks == before.held_blocks,
           "sequence ", part.id, " takes others' blocks");
    drafts.emplace_back(wish.part, std::move(draft));
  }
  Expect(offered + scheduler_.draft_room() == room, offered, " tokens proposed in a room of ", room);
  OfferBranches(plan, drafts);
  Expect(stats().recompute_preemptions == before.recompute_preemptions &&
             stats().swap_preemptions == before.swap_preemptions,
         "a draft preempts");
  uint32_t tokens = 0, extra_logits = 0;
  for (const PlannedSequence& part : plan.sequences) {
    tokens += static_cast<uint32_t>(part.tokens.size());
    const bool is_all_extra = part.score || part.is_branch;
    extra_logits += is_all_extra ? static_cast<uint32_t>(part.tokens.size()) : part.proposed;
  }
  Expect(tokens <= options.max_step_tokens && extra_logits <= kMaxExtraLogits, tokens, " tokens in a step, ",
         extra_logits, " of them scored and proposed");
  CheckBlocks(plan);
}

// Right where the draft is wrong from its first token on, or wrong like it, or only looked at.
void CheckedScheduler::OfferBranches(StepPlan& plan, const OfferedDrafts& drafts) {
  const SchedulerOptions& options = options_.scheduler;
  for (const auto& [number, draft] : drafts) {
    if (draft.empty() || Draw(0, 2) == 0) continue;
    const PlannedSequence part = plan.sequences[number];  // a copy: the plan grows
    const Sequence& sequence = *sequences_[part.id];
    const size_t answered = sequence.known() - sequence.spec.prompt.size();
    const auto answer = [&](size_t index) {
      return FakeExecutor::AnswerToken(part.sampling->seed, index, options.vocab_size);
    };
    const bool is_right = draft[0] != answer(answered) && Draw(0, 3) > 0;
    const uint32_t agreeing = is_right ? Draw(1, 8) : 0, length = agreeing + Draw(0, 4);
    std::vector<int32_t> branch;
    for (uint32_t i = 0; i < length; ++i) {
      const int32_t right = answer(answered + i);
      branch.push_back(i < agreeing ? right : (right + 2) % static_cast<int32_t>(options.vocab_size));
    }
    const uint32_t wanted = Draw(0, 3) == 0 ? 0 : length;
    const SchedulerStats before = stats();
    const uint32_t room = scheduler_.draft_room();
    const auto left = static_cast<uint32_t>(sequence.answer_limit - answered);
    const bool may_go = part.proposed > 0 && room > 1 && plan.sequences.size() < options.max_sequences;
    uint32_t most = may_go ? std::min({wanted, room - 1, left - 1}) : 0;
    // Blocks of its own, from that of the last known token on; one is left for every running sequence.
    const size_t available = before.free_blocks + before.cached_blocks;
    const auto needed = [&](size_t count) {
      return BlocksFor(part.first_position + 1 + count, options.block_tokens) -
             part.first_position / options.block_tokens;
    };
    while (most > 0 && needed(most) + before.running > available) --most;
    const size_t parts = plan.sequences.size();
    const uint32_t tokens = scheduler_.OfferBranch(plan, number, branch, wanted);
    const SchedulerStats now = stats();
    Expect(tokens == (most > 0 ? most + 1 : 0), "sequence ", part.id, " has a branch of ", tokens,
           " tokens, wanted ", most);
    Expect(tokens + scheduler_.draft_room() == room, tokens, " tokens took another room");
    Expect(now.free_blocks + now.cached_blocks >= now.running || now.held_blocks == before.held_blocks,
           "the branch of sequence ", part.id, " takes others' blocks");
    Expect(plan.sequences.size() == parts + (tokens > 0 ? 1 : 0), "a branch is no part of its own");
    if (tokens == 0 || !violations_.empty()) continue;
    const PlannedSequence& own = plan.sequences.back();
    Expect(own.is_branch && own.id == part.id && own.proposed + 1 == tokens && own.tokens.size() == tokens &&
               own.tokens[0] == part.tokens[0] && own.first_position == part.first_position &&
               std::ranges::equal(own.tokens.subspan(1), std::span(branch).first(tokens - 1)),
           "the branch of sequence ", part.id, " has other tokens");
  }
}

void CheckedScheduler::CheckGuess(const GuessOutcome& outcome) {
  Expect(outcome.accepted <= outcome.compared && outcome.compared <= std::max(outcome.verified, 1u) &&
             outcome.compared <= outcome.accepted + 1,
         "of ", outcome.verified, " tokens ", outcome.compared, " were compared, ", outcome.accepted,
         " accepted");
  verified_tokens_ += outcome.verified;
  accepted_tokens_ += outcome.verified > 0 ? outcome.accepted : 0;
}

void CheckedScheduler::CheckOutcomes() {
  for (const DraftOutcome& outcome : scheduler_.TakeDraftOutcomes()) {
    CheckGuess(outcome);
    CheckGuess(outcome.branch);
    Expect(outcome.accepted == 0 || outcome.branch.accepted == 0, "both guesses are right");
    if (outcome.branch.verified > 0) accepted_branch_tokens_ += outcome.branch.accepted;
  }
  for (const EndedDrafted& ended : scheduler_.TakeEndedDrafted())
    Expect(ended.id < sequences_.size() && has_ended(ended.id), "sequence ", ended.id, " has not ended");
}

// What was computed how often, of prompts.
void CheckedScheduler::NoteResults(const StepPlan& plan) {
  const size_t size = options_.scheduler.block_tokens;
  for (const PlannedSequence& part : plan.sequences) {
    const Sequence& sequence = *sequences_[part.id];
    if (part.is_decode || part.score || !options_.scheduler.prefix_cache) continue;
    const size_t end = std::min(part.first_position + part.tokens.size(), sequence.spec.prompt.size() - 1);
    for (size_t i = part.first_position / size; (i + 1) * size <= end; ++i) {
      const auto tokens = std::span(sequence.spec.prompt).first((i + 1) * size);
      const bool is_new =
          computed_blocks_.emplace(sequence.spec.cache_salt, std::vector(tokens.begin(), tokens.end()))
              .second;
      repeated_blocks_ += !is_new;
    }
  }
}

void CheckedScheduler::CheckEnds() {
  std::erase_if(live_, [&](size_t id) {
    Sequence& sequence = *sequences_[id];
    if (sequence.sink->ends == 0) return false;
    CheckAnswer(sequence);
    if (sequence.first_planned.has_value()) CheckCachedTokens(sequence);
    return true;
  });
}

void CheckedScheduler::CheckAnswer(const Sequence& sequence) {
  const RecordingSink& sink = *sequence.sink;
  const SequenceResult& result = sink.result;
  const auto answer = std::span(sequence.tokens).subspan(sequence.given());
  Expect(sink.tokens.size() <= answer.size() &&
             std::ranges::equal(sink.tokens, answer.first(std::min(answer.size(), sink.tokens.size()))),
         "sequence ", sequence.id, " has another answer");
  Expect(result.stats.generated_tokens == sequence.spec.resume.size() + sink.tokens.size() &&
             result.stats.prompt_tokens == sequence.spec.prompt.size() &&
             result.stats.accepted_draft_tokens == sequence.accepted(),
         "sequence ", sequence.id, " counts wrongly");
  Expect(result.stats.preemptions >= sequence.recomputations, "sequence ", sequence.id, " was preempted ",
         result.stats.preemptions, " times, but started again ", sequence.recomputations);
  if (result.reason == FinishReason::kCancelled) {
    Expect(!sequence.is_alone, "sequence ", sequence.id, " ended though nobody cancelled it");
    const bool is_overdue = sequence.spec.deadline.has_value() && *sequence.spec.deadline <= clock_.Now();
    Expect(result.error.code() != StatusCode::kDeadlineExceeded || is_overdue, "sequence ", sequence.id,
           " ended before its deadline");
    Expect(!result.error.ok(), "a cancelled sequence says nothing");
    return;
  }
  const FinishReason wanted = sequence.fails   ? FinishReason::kError
                              : sequence.stops ? FinishReason::kStop
                                               : FinishReason::kLength;
  Expect(result.reason == wanted && sink.tokens.size() == answer.size(), "sequence ", sequence.id,
         " ended after ", sink.tokens.size(), " of ", answer.size());
  Expect((result.reason == FinishReason::kError) == !result.error.ok(), "sequence ", sequence.id,
         " is in error");
  if (sequence.spec.score_prompt && !sequence.fails) {
    Expect(std::ranges::equal(sink.scores, std::span(sequence.spec.prompt).subspan(1)), "sequence ",
           sequence.id, " has ", sink.scores.size(), " scores");
  }
}

// The step in which a sequence that ran was admitted first.
size_t CheckedScheduler::AdmittedIn(const Sequence& sequence) const {
  const MonoTime admitted = sequence.arrived + ToDuration(sequence.sink->result.stats.queue_seconds);
  const auto found = std::ranges::lower_bound(steps_, admitted - kStepGap / 2);
  return static_cast<size_t>(found - steps_.begin()) + 1;
}

void CheckedScheduler::CheckCachedTokens(const Sequence& sequence) {
  const uint32_t cached = sequence.sink->result.stats.cached_tokens;
  const SequenceSpec& spec = sequence.spec;
  const bool may_find = options_.scheduler.prefix_cache && !spec.score_prompt;
  const size_t limit = may_find ? std::min(spec.prompt.size(), sequence.given() - 1) : 0;
  const size_t admitted = AdmittedIn(sequence);
  const auto prompt = std::span(spec.prompt).first(limit);
  std::vector<size_t> common;
  for (const auto& other : sequences_) {
    if (limit == 0 || other->spec.cache_salt != spec.cache_salt) continue;
    size_t computed = 0;
    for (const auto& [step, positions] : other->longest)
      if (step < admitted) computed = positions;
    common.push_back(std::min(computed, CommonTokens(prompt, other->tokens)));
  }
  const size_t most = common.empty() ? 0 : std::ranges::max(common);
  Expect(cached <= most, "sequence ", sequence.id, " found ", cached, " tokens, only ", most,
         " were computed");
  if (!is_roomy_ || options_.failing_seeds > 0) return;
  const size_t whole = most / options_.scheduler.block_tokens * options_.scheduler.block_tokens;
  const uint64_t preempted = stats().recompute_preemptions + stats().swap_preemptions;  // leave copies
  const size_t rivals =
      static_cast<size_t>(std::ranges::count_if(common, [&](size_t n) { return n > whole; }));
  Expect(cached >= (rivals + preempted <= kMaxSiblings ? most : whole), "sequence ", sequence.id, " found ",
         cached, " tokens, but ", most, " were computed");
}

// Of two sequences of which both waited when one was admitted first: the higher priority; of equal ones, who
// came earlier and is no longer, and who came more than max_prefill_wait earlier. A sequence that is full
// waits, and one that may wait for another's prefix does, for max_prefill_wait at most.
void CheckedScheduler::CheckAdmissionOrder() {
  const SchedulerOptions& options = options_.scheduler;
  std::map<std::pair<std::string, std::vector<int32_t>>, int> beginnings;
  const auto beginning = [&](const Sequence& sequence) {
    const auto given = std::span(sequence.tokens).first(sequence.given());
    const auto block = given.first(std::min<size_t>(options.block_tokens, given.size()));
    return std::pair(sequence.spec.cache_salt, std::vector(block.begin(), block.end()));
  };
  for (const auto& sequence : sequences_) ++beginnings[beginning(*sequence)];
  const double bound = options.max_prefill_wait_seconds;
  struct Admission {
    const Sequence* sequence;
    size_t arrived, admitted;  // steps
    MonoTime may_wait_until;
  };
  std::vector<Admission> all;
  for (const auto& sequence : sequences_) {
    if (!sequence->first_planned.has_value()) continue;
    const size_t arrived =
        static_cast<size_t>(std::ranges::upper_bound(steps_, sequence->arrived) - steps_.begin()) + 1;
    const size_t admitted = AdmittedIn(*sequence);
    const bool shares = options.prefix_cache && beginnings[beginning(*sequence)] > 1;
    const MonoTime may_wait_until = sequence->was_full ? MonoTime::max()
                                    : shares           ? sequence->arrived + ToDuration(bound)
                                                       : sequence->arrived;
    all.push_back({sequence.get(), arrived, admitted, may_wait_until});
  }
  for (const Admission& s : all) {
    for (const Admission& x : all) {
      if (steps_[x.admitted - 1] <= s.may_wait_until) continue;
      if (x.admitted < s.arrived || x.admitted >= s.admitted) continue;  // x went while s waited
      const Sequence &first = *s.sequence, &second = *x.sequence;
      const SequenceSpec &a = first.spec, &b = second.spec;
      Expect(a.priority <= b.priority, "sequence ", x.sequence->id, " went before ", s.sequence->id,
             " of a higher priority");
      if (a.priority != b.priority) continue;
      const bool is_better = first.id < second.id && first.given() <= second.given();
      Expect(!is_better, "sequence ", x.sequence->id, " overtook the older, shorter ", s.sequence->id);
      const double later = Seconds(x.sequence->arrived - s.sequence->arrived);
      Expect(later <= std::max(bound, 1e-3), "sequence ", x.sequence->id, " overtook ", s.sequence->id,
             ", which came ", later, " s earlier");
    }
  }
}

void CheckedScheduler::CheckTotals() {
  const SchedulerStats now = stats();
  uint64_t finished = 0, failed = 0, cancelled = 0, generated = 0, preempted = 0, computed = 0;
  uint64_t first_tokens = 0, accepted = 0, rejected = 0, verified = 0, verified_right = 0;
  bool all_finished = true, none_resumed = true;
  for (const auto& sequence : sequences_) {
    const SequenceResult& result = sequence->sink->result;
    Expect(sequence->sink->ends == 1, "sequence ", sequence->id, " ended ", sequence->sink->ends, " times");
    finished += result.reason == FinishReason::kStop || result.reason == FinishReason::kLength;
    failed += result.reason == FinishReason::kError;
    cancelled += result.reason == FinishReason::kCancelled;
    generated += sequence->sink->tokens.size();
    first_tokens += !sequence->sink->tokens.empty();
    const size_t agreed = sequence->accepted();
    const bool has_ended_otherwise =
        sequence->sink->tokens.size() > agreed || result.reason == FinishReason::kStop;
    accepted += agreed;
    rejected += has_ended_otherwise ? sequence->spec.draft.size() - agreed : 0;
    none_resumed &= sequence->spec.resume.empty();
    preempted += result.stats.preemptions;
    verified += result.stats.speculated_tokens;
    verified_right += result.stats.accepted_speculated_tokens;
    computed += sequence->spec.prompt.size() - result.stats.cached_tokens;
    all_finished &= result.reason == FinishReason::kStop || result.reason == FinishReason::kLength;
  }
  Expect(now.finished == finished && now.failed == failed && now.cancelled == cancelled,
         "the ends are counted wrongly");
  Expect(now.generated_tokens == generated, now.generated_tokens, " tokens counted, ", generated, " sent");
  Expect(now.accepted_draft_tokens == accepted && now.rejected_draft_tokens == rejected,
         "drafts are counted wrongly");
  Expect(verified == verified_tokens_ && verified_right == accepted_tokens_,
         "offered drafts are counted wrongly");
  Expect(now.recompute_preemptions + now.swap_preemptions == preempted, "preemptions are counted wrongly");
  Expect(now.prompt_tokens == prompt_tokens_, now.prompt_tokens, " prompt tokens counted, ", prompt_tokens_,
         " computed");
  if (all_finished) {
    Expect(preempted > 0 || !none_resumed || now.prompt_tokens == computed, now.prompt_tokens,
           " prompt tokens computed, ", computed, " were not cached");
    Expect(
        now.prefix_query_tokens - now.prefix_hit_tokens == (options_.scheduler.prefix_cache ? computed : 0),
        "prefix hits are counted wrongly");
  }
  Expect(now.running == 0 && now.waiting == 0 && now.waiting_prompt_tokens == 0, "sequences are left");
  Expect(now.held_blocks == 0 && now.swapped_blocks == 0, "blocks are left");
  const LatencySamples latencies = scheduler_.TakeLatencies();
  Expect(latencies.first_token.size() == first_tokens &&
             latencies.inter_token.size() == generated - first_tokens,
         "latencies are counted wrongly");
}

void CheckedScheduler::Finish() {
  for (const auto& sequence : sequences_) sequence->sink->is_full_now = false;
  for (size_t left = 100'000; Step(); --left) CHECK(left > 0, "the work does not end");
  Expect(scheduler_.idle() && live_.empty(), live_.size(), " sequences are left");
  if (violations_.empty()) CheckTotals();
  if (violations_.empty()) CheckAdmissionOrder();
}

}  // namespace terrace
