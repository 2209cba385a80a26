#include "router/dispatch/generation.h"

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace terrace {

// Ties one attempt's call to the generation, and keeps the generation alive until the call is over.
class Generation::Events : public ExecuteEvents {
 public:
  explicit Events(std::shared_ptr<Generation> owner) : owner_(std::move(owner)) {}
  void OnStarted(uint32_t cached_tokens) override { owner_->attempt_->cached_tokens = cached_tokens; }
  void OnTokens(std::vector<WorkerToken> tokens) override { owner_->OnTokens(tokens); }
  void OnPromptScores(std::vector<WorkerToken> scores) override { owner_->OnPromptScores(scores); }
  void OnDone(StatusOr<ExecuteResult> result) override { owner_->OnAttemptDone(result); }
  bool is_full() const override { return owner_->owner_->is_full(); }

 private:
  const std::shared_ptr<Generation> owner_;
};

Generation::Generation(std::shared_ptr<Answers> owner, std::shared_ptr<SharedRequest> shared, uint32_t draw)
    : owner_(std::move(owner)), shared_(std::move(shared)), request_(shared_->request()), draw_(draw) {}

// Starts the next attempt, or finishes. Nothing of this object may be touched after a call has been started:
// its events may already be running.
void Generation::Advance() {
  for (;;) {
    if (owner_->is_closed()) owner_->Cancel();
    if (cancellation_.is_cancelled()) return Finish(owner_->CancelReason());
    if (Now() >= request_->deadline()) return Finish(DeadlinePassed());
    const Status refused = TryStart();
    if (refused.ok()) return;
    if (is_last_step()) return Finish(failure_.ok() ? refused : failure_);
    ToNextStep();
  }
}

Status Generation::TryStart() {
  const auto view = shared_->state().parts.cluster.View();
  const TierView& tier = view->tiers[step().tier];
  if (tier.text == nullptr) return NoCapacity(tier);
  ASSIGN_OR_RETURN(const PromptPtr prompt, shared_->PromptFor(tier));
  ASSIGN_OR_RETURN(const PickedReplica picked, shared_->Pick(*view, step().tier, *prompt, tried_));
  RETURN_IF_ERROR(CountAttempt(shared_->state(), step().tier, tried_.empty(), worker_error_));
  const ReplicaView* replica = picked.replica;
  tried_.insert(replica->id);
  const bool pays_for_prompt = shared_->PaysForPrompt(step().tier, draw_);
  const auto prompt_tokens = static_cast<uint32_t>(prompt->size());
  const uint32_t cached_tokens = std::min(picked.cached_tokens, prompt_tokens);
  record_.summary.tier = tier.name;
  attempt_.emplace(
      Attempt{.report = {.tier = tier.name,
                         .replica = replica->address,
                         .predicted_cached_tokens = pays_for_prompt ? cached_tokens : 0,
                         .threshold = step().gate.threshold()},
              .text = AnswerText(tier.text, request_, draw_),
              .prompt = prompt,
              .echo = EchoText(*request_, *prompt, *tier.text->tokenizer),
              .pays_for_prompt = pays_for_prompt,
              .vocab_size = tier.vocab_size,
              .slot = cancellation_.NextSlot(),
              .observer = replica->observer,
              .lease = InFlightLease(replica->in_flight, pays_for_prompt ? prompt_tokens - cached_tokens : 0),
              .started = Now()});
  if (scores_prompt())
    attempt_->scores.emplace(prompt, tier.text, tier.vocab_size, *request_->prompt_logprobs());
  const auto slot = attempt_->slot;
  const auto client = replica->client;
  slot->Set(client->Execute(MakeSpec(prompt, tier), std::make_shared<Events>(shared_from_this())));
  return {};
}

ExecuteSpec Generation::MakeSpec(PromptPtr prompt, const TierView& tier) const {
  const auto prompt_tokens = static_cast<uint32_t>(prompt->size());
  ExecuteSpec spec{.request_id = request_->request_id(),
                   .prompt = std::move(prompt),
                   .sampling = request_->sampling(),
                   .max_tokens = request_->max_tokens(),
                   .stop_tokens = request_->stop_tokens(),
                   .ignore_eos = request_->ignore_eos(),
                   .top_logprobs = request_->top_logprobs(),
                   .score_prompt = scores_prompt(),
                   .priority = request_->priority(),
                   .cache_salt = request_->cache_salt(),
                   .traceparent = request_->trace().Header(),
                   .deadline = request_->deadline()};
  spec.sampling.seed = shared_->SeedOf(draw_);
  if (request_->prompt_logprobs().has_value()) {
    // Beside scores, 0 tokens would mean none. All answers get the same limit.
    if (spec.max_tokens == 0 && !request_->is_prompt_only())
      spec.max_tokens = tier.context_length - prompt_tokens;
    if (spec.score_prompt) spec.top_logprobs = std::max(spec.top_logprobs, *request_->prompt_logprobs());
  }
  return spec;
}

void Generation::OnPromptScores(const std::vector<WorkerToken>& scores) {
  if (cancellation_.is_cancelled() || !attempt_->scores.has_value()) return;
  if (!attempt_->protocol_error.ok()) return;
  attempt_->protocol_error = attempt_->scores->Add(scores);
  if (!attempt_->protocol_error.ok()) attempt_->slot->Cancel();
}

void Generation::OnTokens(const std::vector<WorkerToken>& tokens) {
  attempt_->lease.EndPrompt();
  if (step_ == 0 && attempt_->text.signals().tokens == 0) owner_->OnFirstToken();
  if (owner_->is_closed()) owner_->Cancel();
  if (cancellation_.is_cancelled()) return;
  for (const WorkerToken& token : tokens) {
    if (attempt_->text.is_stopped() || !attempt_->protocol_error.ok()) return;
    attempt_->protocol_error = CheckToken(token, attempt_->vocab_size);
    if (attempt_->protocol_error.ok() && attempt_->scores.has_value())
      attempt_->protocol_error = attempt_->scores->CheckComplete();
    if (!attempt_->protocol_error.ok()) return attempt_->slot->Cancel();
    AnswerPiece piece = attempt_->text.Push(token);
    if (!piece.empty()) Show(std::move(piece));
    // The worker need not compute what nobody will see.
    if (attempt_->text.is_stopped()) attempt_->slot->Cancel();
  }
}

void Generation::Show(AnswerPiece piece) {
  if (!is_live()) {
    attempt_->held.Append(std::move(piece));
    return;
  }
  const MonoTime now = Now();
  if (!is_shown_) {
    record_.has_first_token = true;
    record_.summary.time_to_first_token_seconds = Seconds(now - request_->arrival());
  } else if (last_token_.has_value() && !piece.tokens.empty()) {
    const double each = Seconds(now - *last_token_) / static_cast<double>(piece.tokens.size());
    for (size_t i = 0; i < piece.tokens.size(); ++i) recorder().OnInterToken(step().tier, each);
  }
  last_token_ = now;
  Send(std::move(piece));
}

// The first piece goes behind the prompt's scores and begins with its text.
void Generation::Send(AnswerPiece piece) {
  if (!std::exchange(is_shown_, true)) {
    if (attempt_->scores.has_value()) owner_->OnPromptTokens(attempt_->scores->Take());
    piece.text.insert(0, attempt_->echo);
  }
  if (!piece.empty()) owner_->OnPiece(draw_, std::move(piece));
}

void Generation::OnAttemptDone(const StatusOr<ExecuteResult>& result) {
  using enum Recorder::AttemptResult;
  const AnswerText& text = attempt_->text;
  attempt_->lease.End();
  if (record_.queue_seconds < 0) {
    record_.queue_seconds =
        Seconds(attempt_->started - request_->arrival()) + (result.ok() ? result->queue_seconds : 0);
  }
  if (owner_->is_closed()) owner_->Cancel();  // also one that overflowed with the last tokens
  if (cancellation_.is_cancelled()) return OnCancelled(result);
  if (text.is_stopped()) {  // we cancelled the call; the worker's own count may be a step ahead
    return OnAnswered(AnswerEnd::kStop, {.prompt_tokens = static_cast<uint32_t>(attempt_->prompt->size()),
                                         .cached_tokens = attempt_->cached_tokens,
                                         .completion_tokens = text.signals().tokens});
  }
  if (!attempt_->protocol_error.ok()) return OnFailed(attempt_->protocol_error);
  if (!result.ok()) return OnFailed(result.status());
  const Status missing = attempt_->scores.has_value() ? attempt_->scores->CheckComplete() : Status();
  if (!missing.ok()) return OnFailed(missing);
  if (AnswerPiece rest = attempt_->text.Finish(); !rest.empty()) Show(std::move(rest));
  OnAnswered(result->end, result->usage);
}

// By the client, or because another answer of the request failed.
void Generation::OnCancelled(const StatusOr<ExecuteResult>& result) {
  using enum Recorder::AttemptResult;
  const Status reason = owner_->CancelReason();
  const auto as = reason.code() == StatusCode::kCancelled ? kAbandoned : ResultOf(reason);
  Record(as, result.ok() ? result->usage : UsageSoFar(as));
  Finish(reason);
}

void Generation::OnAnswered(AnswerEnd end, const TokenUsage& usage) {
  using enum Recorder::AttemptResult;
  attempt_->observer->OnCallEnd({});
  const bool is_accepted = step().gate.Accepts(attempt_->text.signals());
  Record(is_accepted ? kAccepted : kEscalated, usage);
  if (!is_accepted) {
    const size_t tier = step().tier;
    ToNextStep();
    recorder().OnEscalation(tier, step().tier);
    return Advance();
  }
  if (!is_live()) {
    record_.has_first_token = true;
    record_.summary.time_to_first_token_seconds = Seconds(Now() - request_->arrival());
    Send(std::move(attempt_->held));
  } else if (!is_shown_) {
    Send({});  // an answer without text or tokens still has its prompt
  }
  const bool has_calls = end == AnswerEnd::kStop && attempt_->text.has_tool_calls();
  record_.summary.end = has_calls ? AnswerEnd::kToolCalls : end;
  record_.summary.stop = attempt_->text.stop();
  Finish({});
}

void Generation::OnFailed(const Status& error) {
  Log(LogLevel::kWarn, "attempt_failed",
      {{"request_id", request_->request_id()},
       {"tier", attempt_->report.tier},
       {"replica", attempt_->report.replica},
       {"error", Message(error)}});
  attempt_->observer->OnCallEnd(error);
  Record(ResultOf(error), UsageSoFar(ResultOf(error)));
  failure_ = ClientError(error);
  worker_error_ = error;
  if (is_shown_ || error.code() == StatusCode::kDeadlineExceeded) return Finish(failure_);
  const bool may_retry = IsRetryable(error) && tried_.size() < shared_->state().parts.retries.max_attempts;
  if (may_retry) return Advance();
  if (is_last_step()) return Finish(failure_);
  ToNextStep();
  Advance();
}

void Generation::Record(Recorder::AttemptResult result, const TokenUsage& usage) {
  const TokenUsage without_prompt{.completion_tokens = usage.completion_tokens};
  attempt_->report.usage = attempt_->pays_for_prompt ? usage : without_prompt;
  attempt_->report.mean_logprob = attempt_->text.signals().mean_logprob;
  RecordAttempt(shared_->state(), step().tier, result, attempt_->report, record_.summary);
  record_.summary.usage = draw_ == 0 ? usage : without_prompt;
}

TokenUsage Generation::UsageSoFar(Recorder::AttemptResult result) const {
  return BrokenOffUsage(result, {.prompt_tokens = static_cast<uint32_t>(attempt_->prompt->size()),
                                 .cached_tokens = attempt_->cached_tokens,
                                 .completion_tokens = attempt_->text.signals().tokens});
}

void Generation::ToNextStep() {
  owner_->OnNextTier(shared_->plan()[step_].tier, shared_->plan()[step_ + 1].tier);
  ++step_;
  tried_.clear();
  failure_ = {};
}

void Generation::Finish(const Status& status) {
  record_.status = status;
  record_.summary.total_seconds = Seconds(Now() - request_->arrival());
  owner_->OnEnd(draw_, step().tier, record_);
}

}  // namespace terrace
