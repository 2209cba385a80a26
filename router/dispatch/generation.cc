#include "router/dispatch/generation.h"

#include <iterator>
#include <utility>

#include "base/log.h"
#include "base/rng.h"

namespace terrace {
namespace {

uint64_t SeedFor(const Request& request, DispatchState& state) {
  if (request.sampling().seed.has_value()) return *request.sampling().seed;
  return RandomBits(state.parts.seed, state.seeds++);
}

}  // namespace

// Ties one attempt's call to the generation, and keeps the generation alive until the call is over.
class Generation::Events : public ExecuteEvents {
 public:
  explicit Events(std::shared_ptr<Generation> owner) : owner_(std::move(owner)) {}
  void OnTokens(std::vector<WorkerToken> tokens) override { owner_->OnTokens(tokens); }
  void OnPromptScores(std::vector<WorkerToken>) override {}  // not asked for
  void OnDone(StatusOr<ExecuteResult> result) override { owner_->OnAttemptDone(result); }

 private:
  const std::shared_ptr<Generation> owner_;
};

Generation::Generation(std::shared_ptr<DispatchState> state, Admission::Ticket ticket, RequestPtr request,
                       const CatalogEntry& entry, std::shared_ptr<AnswerSink> sink)
    : state_(std::move(state)),
      ticket_(std::move(ticket)),
      request_(std::move(request)),
      entry_(entry),
      sink_(std::move(sink)),
      seed_(SeedFor(*request_, *state_)) {
  record_.api = request_->api();
  record_.request_id = request_->request_id();
  record_.model = entry_.id;
}

void Generation::Start() {
  const auto view = state_->parts.cluster.View();
  plan_ = entry_.policy->Plan(*request_, *view);
  // What the last tier cannot hold is refused before any worker is asked: an earlier answer may not be
  // accepted.
  const TierView& last = view->tiers[plan_.back().tier];
  if (last.text != nullptr) {
    if (const auto prompt = PromptFor(last); !prompt.ok()) return Finish(prompt.status());
  }
  Advance();
}

// Starts the next attempt, or finishes. Nothing of this object may be touched after a call has been started:
// its events may already be running.
void Generation::Advance() {
  for (;;) {
    if (cancellation_.is_cancelled() || sink_->is_closed()) return Finish(ClientGone());
    if (Now() >= request_->deadline()) return Finish(DeadlinePassed());
    const auto view = state_->parts.cluster.View();
    const Status refused = TryStart(view->tiers[step().tier]);
    if (refused.ok()) return;
    if (is_last_step()) return Finish(failure_.ok() ? refused : failure_);
    ToNextStep();
  }
}

Status Generation::TryStart(const TierView& tier) {
  ASSIGN_OR_RETURN(const ReplicaView* replica, PickReplica(*state_, *request_, tier, tried_));
  CHECK(tier.text != nullptr, "a ready replica without text");
  ASSIGN_OR_RETURN(PromptPtr prompt, PromptFor(tier));
  tried_.insert(replica->id);
  prompt_tokens_ = prompt->size();
  record_.summary.tier = tier.name;
  attempt_.emplace(Attempt{
      .report = {.tier = tier.name, .replica = replica->address, .threshold = step().gate.threshold()},
      .text = AnswerText(tier.text, request_),
      .vocab_size = tier.vocab_size,
      .slot = cancellation_.NextSlot(),
      .started = Now()});
  const auto slot = attempt_->slot;
  const auto client = replica->client;
  slot->Set(client->Execute(MakeSpec(std::move(prompt)), std::make_shared<Events>(shared_from_this())));
  return {};
}

StatusOr<PromptPtr> Generation::PromptFor(const TierView& tier) {
  PromptPtr& prompt = prompts_[tier.text_digest];
  if (prompt == nullptr) {
    ASSIGN_OR_RETURN(prompt, EncodeInput(*request_, tier));
  }
  RETURN_IF_ERROR(CheckContext(*request_, prompt->size(), tier));
  return prompt;
}

ExecuteSpec Generation::MakeSpec(PromptPtr prompt) const {
  ExecuteSpec spec{.request_id = request_->request_id(),
                   .prompt = std::move(prompt),
                   .sampling = request_->sampling(),
                   .max_tokens = request_->max_tokens(),
                   .stop_tokens = request_->stop_tokens(),
                   .ignore_eos = request_->ignore_eos(),
                   .top_logprobs = request_->top_logprobs(),
                   .deadline = request_->deadline()};
  spec.sampling.seed = seed_;
  return spec;
}

void Generation::OnTokens(const std::vector<WorkerToken>& tokens) {
  if (sink_->is_closed()) cancellation_.Cancel();
  if (cancellation_.is_cancelled()) return;
  for (const WorkerToken& token : tokens) {
    if (attempt_->text.is_stopped() || !attempt_->protocol_error.ok()) return;
    attempt_->protocol_error = CheckToken(token, attempt_->vocab_size);
    if (!attempt_->protocol_error.ok()) return attempt_->slot->Cancel();
    AnswerPiece piece = attempt_->text.Push(token);
    if (!piece.empty()) Show(std::move(piece));
    // The worker need not compute what nobody will see.
    if (attempt_->text.is_stopped()) attempt_->slot->Cancel();
  }
}

void Generation::Show(AnswerPiece piece) {
  if (!is_live()) {
    attempt_->held.text += piece.text;
    std::move(piece.tokens.begin(), piece.tokens.end(), std::back_inserter(attempt_->held.tokens));
    return;
  }
  const MonoTime now = Now();
  if (!is_shown_) {
    record_.has_first_token = true;
    record_.summary.time_to_first_token_seconds = Seconds(now - request_->arrival());
  } else if (last_token_.has_value() && !piece.tokens.empty()) {
    const double each = Seconds(now - *last_token_) / static_cast<double>(piece.tokens.size());
    for (size_t i = 0; i < piece.tokens.size(); ++i) state_->parts.recorder.OnInterToken(step().tier, each);
  }
  last_token_ = now;
  is_shown_ = true;
  sink_->OnPiece(std::move(piece));
}

void Generation::OnAttemptDone(const StatusOr<ExecuteResult>& result) {
  using enum Recorder::AttemptResult;
  const AnswerText& text = attempt_->text;
  if (record_.queue_seconds < 0) {
    record_.queue_seconds =
        Seconds(attempt_->started - request_->arrival()) + (result.ok() ? result->queue_seconds : 0);
  }
  if (sink_->is_closed()) cancellation_.Cancel();  // also one that overflowed with the last tokens
  if (cancellation_.is_cancelled()) {
    Record(kAbandoned, result.ok() ? result->usage : UsageSoFar(kAbandoned));
    return Finish(ClientGone());
  }
  if (text.is_stopped()) {  // we cancelled the call; the worker's own count may be a step ahead
    return OnAnswered(AnswerEnd::kStop, {.prompt_tokens = static_cast<uint32_t>(prompt_tokens_),
                                         .cached_tokens = result.ok() ? result->usage.cached_tokens : 0,
                                         .completion_tokens = text.signals().tokens});
  }
  if (!attempt_->protocol_error.ok()) return OnFailed(attempt_->protocol_error);
  if (!result.ok()) return OnFailed(result.status());
  if (AnswerPiece rest = attempt_->text.Finish(); !rest.empty()) Show(std::move(rest));
  OnAnswered(result->end, result->usage);
}

void Generation::OnAnswered(AnswerEnd end, const TokenUsage& usage) {
  using enum Recorder::AttemptResult;
  const bool is_accepted = step().gate.Accepts(attempt_->text.signals());
  Record(is_accepted ? kAccepted : kEscalated, usage);
  if (!is_accepted) {
    const size_t tier = step().tier;
    ToNextStep();
    state_->parts.recorder.OnEscalation(tier, step().tier);
    return Advance();
  }
  if (!is_live()) {
    record_.has_first_token = true;
    record_.summary.time_to_first_token_seconds = Seconds(Now() - request_->arrival());
    if (!attempt_->held.empty()) sink_->OnPiece(std::move(attempt_->held));
  }
  record_.summary.end = end;
  record_.summary.stop = attempt_->text.stop();
  Finish({});
}

void Generation::OnFailed(const Status& error) {
  Log(LogLevel::kWarn, "attempt_failed",
      {{"request_id", request_->request_id()},
       {"tier", attempt_->report.tier},
       {"replica", attempt_->report.replica},
       {"error", Message(error)}});
  Record(ResultOf(error), UsageSoFar(ResultOf(error)));
  failure_ = ClientError(error);
  if (is_shown_ || error.code() == StatusCode::kDeadlineExceeded) return Finish(failure_);
  const bool may_retry = IsRetryable(error) && tried_.size() < 2;  // one other replica of the tier
  if (may_retry) return Advance();
  if (is_last_step()) return Finish(failure_);
  ToNextStep();
  Advance();
}

void Generation::Record(Recorder::AttemptResult result, const TokenUsage& usage) {
  attempt_->report.usage = usage;
  attempt_->report.mean_logprob = attempt_->text.signals().mean_logprob;
  RecordAttempt(*state_, step().tier, result, attempt_->report, record_.summary);
}

TokenUsage Generation::UsageSoFar(Recorder::AttemptResult result) const {
  return BrokenOffUsage(result, prompt_tokens_, attempt_->text.signals().tokens);
}

void Generation::ToNextStep() {
  ++step_;
  tried_.clear();
  failure_ = {};
}

void Generation::Finish(const Status& status) {
  record_.status = status;
  record_.summary.total_seconds = Seconds(Now() - request_->arrival());
  state_->parts.recorder.OnRequest(record_);
  { const Admission::Ticket given_back = std::move(ticket_); }
  if (status.ok()) {
    sink_->OnFinish(record_.summary);
  } else {
    sink_->OnFinish(status);
  }
}

}  // namespace terrace
