#include "worker/engine/scheduler.h"

#include <algorithm>
#include <utility>

namespace terrace {
namespace {

constexpr size_t kMaxStopTokens = 64;
constexpr uint32_t kMaxTopLogprobs = 20;

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
  const uint64_t answer = is_open ? 1 : spec.max_tokens;
  if (prompt + answer <= limit && PositionsFor(prompt, answer) <= CachePositions(options)) return {};
  return WithReason(
      InvalidArgument("a prompt of ", prompt, " tokens with an answer of ", is_open ? "at least " : "",
                      answer, " needs ", prompt + answer, " tokens; the limit is ", limit),
      "context_length_exceeded");
}

}  // namespace

struct Scheduler::Sequence {
  uint64_t id = 0;
  SequenceSpec spec;  // its prompt has moved into `tokens`
  std::shared_ptr<TokenSink> sink;
  std::vector<int32_t> tokens;  // prompt, then answer
  uint32_t prompt_tokens = 0;
  uint32_t answer_limit = 0;
  uint32_t computed = 0;  // positions [0, computed) are in the KV cache
  BlockTable blocks;      // of the whole sequence at its longest, from admission on
  TokenCounts counts;
  MonoTime arrived;
  std::optional<MonoTime> admitted, decoding;
  bool is_finished = false;

  uint32_t generated() const { return static_cast<uint32_t>(tokens.size()) - prompt_tokens; }
  bool is_decoding() const { return computed >= prompt_tokens; }
};

Scheduler::Scheduler(SchedulerOptions options) : options_(std::move(options)), allocator_(options_.blocks) {
  CHECK(options_.max_sequences > 0 && options_.max_step_tokens >= options_.max_sequences, "max_sequences ",
        options_.max_sequences, ", max_step_tokens ", options_.max_step_tokens);
  CHECK(options_.block_tokens > 0 && options_.blocks > 0);
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
  if (spec.top_logprobs > kMaxTopLogprobs) {
    return InvalidValue(Concat("top_logprobs is ", spec.top_logprobs, ", limit ", kMaxTopLogprobs));
  }
  return ValidateSamplingParams(spec.sampling, options.vocab_size);
}

void Scheduler::Add(SequenceSpec spec, std::shared_ptr<TokenSink> sink, MonoTime now) {
  auto sequence = std::make_unique<Sequence>();
  sequence->id = next_id_++;
  sequence->answer_limit = AnswerLimit(spec, options_);
  sequence->tokens = std::exchange(spec.prompt, {});
  sequence->prompt_tokens = static_cast<uint32_t>(sequence->tokens.size());
  sequence->counts.AddPrompt(sequence->tokens);
  sequence->spec = std::move(spec);
  sequence->sink = std::move(sink);
  sequence->arrived = now;
  waiting_.push_back(std::move(sequence));
}

StepPlan Scheduler::Schedule(MonoTime now) {
  DropDead(running_, now);
  DropDead(waiting_, now);
  Admit(now);

  StepPlan plan;
  planned_.clear();
  uint32_t budget = options_.max_step_tokens;
  for (auto& sequence : running_) {
    if (!sequence->is_decoding()) continue;
    Plan(*sequence, 1, plan);
    --budget;
  }
  for (auto& sequence : running_) {
    if (sequence->is_decoding() || budget == 0) continue;
    const uint32_t chunk = std::min(budget, sequence->prompt_tokens - sequence->computed);
    Plan(*sequence, chunk, plan);
    budget -= chunk;
  }
  CheckBlocks();
  return plan;
}

void Scheduler::DropDead(Sequences& sequences, MonoTime now) {
  std::erase_if(sequences, [&](const std::unique_ptr<Sequence>& sequence) {
    if (sequence->sink->is_closed()) {
      Finish(*sequence, FinishReason::kCancelled,
             WithReason(Cancelled("nobody reads the answer"), "cancelled"), now);
    } else if (sequence->spec.deadline.has_value() && *sequence->spec.deadline <= now) {
      Finish(*sequence, FinishReason::kCancelled,
             WithReason(DeadlineExceeded("the deadline passed after ", sequence->computed, " of ",
                                         sequence->prompt_tokens, " prompt tokens and ",
                                         sequence->generated(), " tokens of the answer"),
                        "deadline_exceeded"),
             now);
    }
    return sequence->is_finished;
  });
}

void Scheduler::Admit(MonoTime now) {
  size_t admitted = 0;
  for (auto& sequence : waiting_) {
    const size_t blocks =
        BlocksFor(PositionsFor(sequence->prompt_tokens, sequence->answer_limit), options_.block_tokens);
    if (running_.size() >= options_.max_sequences || blocks > allocator_.free()) break;
    CHECK(allocator_.Allocate(blocks, sequence->blocks).ok());
    sequence->admitted = now;
    running_.push_back(std::move(sequence));
    ++admitted;
  }
  waiting_.erase(waiting_.begin(), waiting_.begin() + admitted);
}

void Scheduler::Plan(Sequence& sequence, uint32_t tokens, StepPlan& plan) {
  PlannedSequence part;
  part.id = sequence.id;
  const std::span<const int32_t> all(sequence.tokens);
  part.tokens = all.subspan(sequence.computed, tokens);
  part.first_position = sequence.computed;
  part.blocks = sequence.blocks;
  const uint32_t end = sequence.computed + tokens;
  part.sample = end == all.size() && sequence.generated() < sequence.answer_limit;
  if (sequence.spec.score_prompt && !sequence.is_decoding()) {
    part.score = true;
    part.score_targets =
        all.subspan(sequence.computed + 1, std::min<size_t>(tokens, all.size() - sequence.computed - 1));
  }
  part.sampling = &sequence.spec.sampling;
  part.counts = &sequence.counts;
  part.sample_index = sequence.generated();
  part.top_logprobs = sequence.spec.top_logprobs;
  plan.sequences.push_back(part);
  planned_.push_back(&sequence);
}

void Scheduler::Commit(const StepPlan& plan, StepResult result, MonoTime now) {
  CHECK(plan.sequences.size() == planned_.size() && result.outputs.size() == planned_.size());
  for (size_t i = 0; i < planned_.size(); ++i) {
    CHECK(plan.sequences[i].id == planned_[i]->id);
    Apply(*planned_[i], plan.sequences[i], result.outputs[i], now);
  }
  planned_.clear();
  std::erase_if(running_, [](const std::unique_ptr<Sequence>& sequence) { return sequence->is_finished; });
  CheckBlocks();
}

void Scheduler::Apply(Sequence& sequence, const PlannedSequence& planned, const SequenceOutput& output,
                      MonoTime now) {
  if (!output.error.ok()) return Finish(sequence, FinishReason::kError, output.error, now);
  CHECK(output.token.has_value() == planned.sample && output.scores.size() == planned.score_targets.size());

  const bool was_prompt = !sequence.is_decoding();
  sequence.computed += static_cast<uint32_t>(planned.tokens.size());
  if (was_prompt) {
    totals_.prompt_tokens += planned.tokens.size();
    if (sequence.is_decoding()) sequence.decoding = now;
  }
  if (!output.scores.empty()) sequence.sink->OnPromptScores(planned.first_position + 1, output.scores);
  if (output.token.has_value()) {
    const int32_t token = output.token->token;
    const uint32_t index = sequence.generated();
    sequence.tokens.push_back(token);
    sequence.counts.AddGenerated(token);
    ++totals_.generated_tokens;
    sequence.sink->OnTokens(index, {&*output.token, 1});
    if (IsEnd(sequence, token)) return Finish(sequence, FinishReason::kStop, {}, now);
  }
  if (sequence.is_decoding() && sequence.generated() >= sequence.answer_limit) {
    Finish(sequence, FinishReason::kLength, {}, now);
  }
}

bool Scheduler::IsEnd(const Sequence& sequence, int32_t token) const {
  const auto has = [token](const std::vector<int32_t>& tokens) {
    return std::ranges::find(tokens, token) != tokens.end();
  };
  return has(sequence.spec.stop_tokens) || (!sequence.spec.ignore_eos && has(options_.end_tokens));
}

void Scheduler::Finish(Sequence& sequence, FinishReason reason, const Status& error, MonoTime now) {
  allocator_.Release(sequence.blocks);
  sequence.is_finished = true;
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
  SequenceResult result{.reason = reason, .error = error, .stats = {}};
  result.stats.prompt_tokens = sequence.prompt_tokens;
  result.stats.generated_tokens = sequence.generated();
  result.stats.queue_seconds = Seconds(admitted - sequence.arrived);
  result.stats.prefill_seconds = Seconds(decoding - admitted);
  result.stats.decode_seconds = Seconds(now - decoding);
  sequence.sink->OnFinish(result);
}

void Scheduler::CancelAll(const Status& status, MonoTime now) {
  planned_.clear();
  for (Sequences* sequences : {&running_, &waiting_}) {
    for (auto& sequence : *sequences) Finish(*sequence, FinishReason::kCancelled, status, now);
    sequences->clear();
  }
  CheckBlocks();
}

SchedulerStats Scheduler::Stats() const {
  SchedulerStats stats = totals_;
  stats.running = static_cast<uint32_t>(running_.size());
  stats.waiting = static_cast<uint32_t>(waiting_.size());
  for (const auto& sequence : waiting_) stats.waiting_prompt_tokens += sequence->prompt_tokens;
  stats.free_blocks = static_cast<uint32_t>(allocator_.free());
  stats.held_blocks = static_cast<uint32_t>(allocator_.held());
  stats.total_blocks = static_cast<uint32_t>(allocator_.total());
  return stats;
}

void Scheduler::CheckBlocks() const {
  size_t held = 0;
  for (const auto& sequence : running_) held += sequence->blocks.size();
  CHECK(held == allocator_.held() && held + allocator_.free() == allocator_.total(), held, " blocks held, ",
        allocator_.free(), " free, ", allocator_.total(), " in all");
}

}  // namespace terrace
