#include "router/dispatch/generation.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/log.h"

namespace terrace {
namespace {

constexpr uint32_t kTokensToTell = 16;  // measured, at a time: who counts them is shared by all answers

}  // namespace

// Ties one attempt's call to the generation, and keeps the generation alive until the call is over. From then
// on the generation may be with another call: nothing that still comes counts.
class Generation::Events : public ExecuteEvents {
 public:
  explicit Events(std::shared_ptr<Generation> owner) : owner_(std::move(owner)) {}
  void OnStarted(uint32_t cached_tokens) override {
    if (!is_over_) owner_->OnStarted(cached_tokens);
  }
  void OnDraftRecord(const std::string& record) override {
    if (!is_over_) owner_->OnDraftRecord(record);
  }
  void OnTokens(std::vector<WorkerToken> tokens) override {
    if (!is_over_) owner_->OnTokens(tokens, was_full_.exchange(false));
  }
  void OnPromptScores(std::vector<WorkerToken> scores) override {
    if (!is_over_) owner_->OnPromptScores(scores);
  }
  void OnDone(StatusOr<ExecuteResult> result) override {
    if (!std::exchange(is_over_, true)) owner_->OnAttemptDone(result);
  }
  bool is_full() const override {
    const bool full = owner_->owner_->is_full();
    if (full) was_full_ = true;
    return full;
  }

 private:
  const std::shared_ptr<Generation> owner_;
  bool is_over_ = false;
  mutable std::atomic<bool> was_full_ = false;  // since tokens came: any thread asks
};

Generation::Generation(std::shared_ptr<Answers> owner, std::shared_ptr<SharedRequest> shared, uint32_t draw)
    : owner_(std::move(owner)),
      shared_(std::move(shared)),
      request_(shared_->request()),
      draw_(draw),
      failover_(shared_->state().parts.retries) {}

// Starts the next attempt, waits for a replica, or finishes. Nothing of this object may be touched after a
// call has been started or the wait has begun: another thread may already be here.
void Generation::Advance() {
  for (;;) {
    if (owner_->is_closed()) owner_->Cancel();
    if (cancellation_.is_cancelled()) return Finish(owner_->CancelReason());
    if (Now() >= request_->deadline()) return Finish(DeadlinePassed());
    const Status refused = TryStart();
    if (refused.ok()) return;
    const std::string reason = Reason(refused);
    const bool is_kept_apart = reason == kKeptApartReason;
    if (is_kept_apart || (must_go_on() && IsNoCapacity(reason))) return Wait(is_kept_apart);
    if (must_go_on() || reason == kPoisonReason) return Finish(refused);
    if (is_last_step()) return Finish(failover_.error().ok() ? refused : ClientError(failover_.error()));
    ToNextStep();
  }
}

Status Generation::TryStart() {
  DispatchState& state = shared_->state();
  const auto view = state.parts.cluster.View();
  const TierView& tier = view->tiers[step().tier];
  if (tier.text == nullptr) return NoCapacity(tier);
  if (answer_.has_value() && !answer_->IsOf(tier)) {
    if (is_shown_) return ModelReplaced();
    answer_.reset();  // the other model begins anew
    is_interrupted_ = false;
  }
  if (!answer_.has_value()) RETURN_IF_ERROR(Begin(tier));
  const std::vector<TokenId>& prompt = *answer_->prompt();
  const AttemptQuery query{.request = *request_,
                           .view = *view,
                           .tier = step().tier,
                           .prompt = prompt,
                           .tried = failover_.TriedAt(Now(), answer_->has_begun()),
                           .has_begun = answer_->has_begun(),
                           .waited = failover_.WaitedAt(Now())};
  // What has come so far was not what takes workers down.
  if (!answer_->has_begun()) RETURN_IF_ERROR(CheckQuarantine(state, query));
  ASSIGN_OR_RETURN(Boarded boarded, PickApart(state, query, [&](const std::set<ReplicaId>& excluded) {
                     return shared_->Pick(*view, step().tier, prompt, excluded);
                   }));
  RETURN_IF_ERROR(CountAttempt());
  Call(std::move(boarded), tier);
  return {};
}

Status Generation::Begin(const TierView& tier) {
  ASSIGN_OR_RETURN(PromptPtr prompt, shared_->PromptFor(tier));
  answer_.emplace(tier, std::move(prompt), request_, draw_);
  if (step().verifies) answer_->Propose(EncodeDraft(draft_, tier));
  return {};
}

// What has begun needs no leave: the tier's workers would have to do it once more.
Status Generation::CountAttempt() {
  const size_t tier = step().tier;
  if (!answer_->has_begun()) {
    return terrace::CountAttempt(shared_->state(), tier, failover_.attempts() == 0, failover_.error());
  }
  recorder().OnResume(tier, ResumeReason(failover_.error()));
  return {};
}

void Generation::Call(Boarded boarded, const TierView& tier) {
  const ReplicaView& replica = *boarded.picked.replica;
  const bool pays_for_prompt = shared_->PaysForPrompt(step().tier, draw_);
  const auto prompt_tokens = static_cast<uint32_t>(answer_->prompt()->size());
  const uint32_t cached_tokens =
      pays_for_prompt ? std::min(boarded.picked.cached_tokens, prompt_tokens) : prompt_tokens;
  const auto resumed_tokens = static_cast<uint32_t>(answer_->log().size());
  record_.summary.tier = tier.name;
  const ExecuteSpec spec = MakeSpec(replica, tier);
  Attempt& attempt = attempt_.emplace();
  attempt.report = {.tier = tier.name,
                    .replica = replica.address,
                    .predicted_cached_tokens = pays_for_prompt ? cached_tokens : 0,
                    .resumed_tokens = resumed_tokens,
                    .draft_tokens = static_cast<uint32_t>(spec.draft.size())};
  attempt.replica = replica.id;
  attempt.pays_for_prompt = pays_for_prompt;
  attempt.instance = replica.description.instance;
  attempt.boarded = shared_->state().quarantine->deaths();
  attempt.trial = std::move(boarded.trial);
  attempt.slot = cancellation_.NextSlot();
  attempt.observer = replica.observer;
  attempt.lease = InFlightLease(replica.in_flight, prompt_tokens - cached_tokens + resumed_tokens);
  attempt.started = Now();
  failover_.OnAttempt();
  const auto slot = attempt.slot;
  const auto client = replica.client;
  {
    std::lock_guard lock(mutex_);
    StartHold();  // of an answer that goes on: its next token may be late too
  }
  slot->Set(client->Execute(spec, std::make_shared<Events>(shared_from_this())));
}

ExecuteSpec Generation::MakeSpec(const ReplicaView& replica, const TierView& tier) {
  const auto prompt_tokens = static_cast<uint32_t>(answer_->prompt()->size());
  ExecuteSpec spec{.request_id = request_->request_id(),
                   .instance = replica.description.instance,
                   .prompt = answer_->prompt(),
                   .resume = answer_->log(),
                   .draft = answer_->RestOfDraft(),
                   .sampling = request_->sampling(),
                   .max_tokens = request_->max_tokens(),
                   .stop_tokens = request_->stop_tokens(),
                   .ignore_eos = request_->ignore_eos(),
                   .top_logprobs = request_->top_logprobs(),
                   .score_prompt = answer_->needs_scores(),
                   .signals = NeedsSignals(shared_->plan(), step_),
                   .speculation_max_tokens = request_->speculation_max_tokens(),
                   .draft_record = answer_->draft_record(),
                   .priority = request_->priority(),
                   .cache_salt = request_->cache_salt(),
                   .traceparent = request_->trace().Header(),
                   .tracestate = request_->trace().state,
                   .deadline = request_->deadline()};
  spec.sampling.seed = shared_->SeedOf(draw_);
  if (spec.score_prompt) spec.top_logprobs = std::max(spec.top_logprobs, *request_->prompt_logprobs());
  const uint32_t said = replica.description.context_length;
  const uint32_t context = said == 0 ? tier.context_length : said;
  const uint32_t room = context - std::min(context, prompt_tokens);
  if (answer_->has_begun()) {  // it ends where its first replica would have ended it, if there is room here
    if (spec.max_tokens == 0) spec.max_tokens = std::min(answer_->limit(), room);
    return spec;
  }
  // Beside scores, 0 tokens would mean none. A limit of the price counts no more than the least of the tier's
  // contexts, and this replica's own may be larger. All answers get the same limit.
  const bool needs_limit = request_->prompt_logprobs().has_value() || request_->max_usd().has_value();
  if (needs_limit && spec.max_tokens == 0 && !request_->is_prompt_only())
    spec.max_tokens = tier.context_length - prompt_tokens;
  answer_->SetLimit(spec.max_tokens == 0 ? room : spec.max_tokens);
  return spec;
}

// For a replica to go on at, or to be tried at apart from others, which is not for long: the housekeeper
// calls Advance again.
void Generation::Wait(bool is_kept_apart) {
  if (!failover_.MayWait(Now()) && !is_kept_apart) return Finish(ClientError(failover_.error()));
  shared_->state().waiting.Add([self = shared_from_this()] { self->Advance(); });
}

void Generation::OnStarted(uint32_t cached_tokens) {
  attempt_->has_started = true;
  attempt_->cached_tokens = cached_tokens;
}

void Generation::OnPromptScores(const std::vector<WorkerToken>& scores) {
  attempt_->has_started = true;
  if (cancellation_.is_cancelled() || !answer_->needs_scores()) return;
  if (!attempt_->protocol_error.ok()) return;
  attempt_->protocol_error = answer_->AddScores(scores);
  if (!attempt_->protocol_error.ok()) attempt_->slot->Cancel();
}

void Generation::OnDraftRecord(const std::string& record) {
  std::lock_guard lock(mutex_);
  answer_->SetDraftRecord(record);
}

void Generation::OnTokens(const std::vector<WorkerToken>& tokens, bool paused) {
  std::lock_guard lock(mutex_);
  attempt_->has_started = true;
  attempt_->lease.EndPrompt();
  if (step_ == 0 && !answer_->has_begun()) owner_->OnFirstToken();
  if (owner_->is_closed()) owner_->Cancel();
  if (cancellation_.is_cancelled()) return;
  const MonoTime now = Now();
  Measure(tokens.size(), paused, now);
  for (const WorkerToken& token : tokens) {
    if (answer_->is_over() || !attempt_->protocol_error.ok()) return;
    OnToken(token, now);
  }
  StartHold();
}

void Generation::Measure(size_t tokens, bool paused, MonoTime now) {
  const AnswerAttempt& report = attempt_->report;
  const bool drafted = answer_->log().size() < size_t{report.resumed_tokens} + report.draft_tokens;
  attempt_->arrivals.OnTokens(tokens, !paused && !drafted, now);
  if (attempt_->arrivals.tokens() >= kTokensToTell) TellPace();
}

void Generation::TellPace() {
  const ArrivalMeter::Measured measured = attempt_->arrivals.Take();
  if (measured.tokens > 0)
    shared_->state().parts.admission.OnTokens(step().tier, measured.seconds, measured.tokens);
}

void Generation::OnToken(const WorkerToken& token, MonoTime now) {
  StatusOr<AnswerPiece> piece = answer_->Push(token, now);
  if (!piece.ok()) {
    attempt_->protocol_error = piece.status();
    return attempt_->slot->Cancel();
  }
  failover_.OnToken();
  if (answer_->log().size() > attempt_->report.resumed_tokens + attempt_->report.draft_tokens)
    losses_.OnToken();
  attempt_->trial.OnTokens(answer_->log().size());
  if (std::exchange(is_interrupted_, false)) recorder().OnResumed(step().tier, Seconds(now - last_received_));
  last_received_ = now;
  if (!piece->empty()) Show(*std::move(piece), now);
  Judge(now);
}

// Perhaps decides, before the answer's end. With mutex_ held, as the next.
void Generation::Judge(MonoTime now) {
  if (!step().gate.is_open() && answer_->verdict() == Verdict::kUndecided &&
      answer_->JudgeEarly(step().gate, now) == Verdict::kAccepted) {
    if (AnswerPiece held = answer_->TakeHeld(); !held.empty()) Show(std::move(held), now);
  }
  // The worker need not compute what nobody will see.
  if (answer_->is_over()) attempt_->slot->Cancel();
}

void Generation::StartHold() {
  if (hold_timer_.has_value()) return;
  const auto end = answer_->HoldEnd(step().gate);
  if (!end.has_value()) return;
  hold_timer_ = shared_->state().timers.Add(*end, [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->OnHoldEnd();
  });
}

// The call is over: from here on the housekeeper does nothing, and it has done what it was at.
void Generation::StopHold() {
  std::lock_guard lock(mutex_);
  if (hold_timer_.has_value()) shared_->state().timers.Remove(*hold_timer_);
  hold_timer_.reset();
}

// By the housekeeper. The timer may be one of an earlier call: what is not due is not judged.
void Generation::OnHoldEnd() {
  std::lock_guard lock(mutex_);
  if (!hold_timer_.has_value()) return;
  if (owner_->is_closed()) owner_->Cancel();
  if (cancellation_.is_cancelled() || answer_->is_over() || !attempt_->protocol_error.ok()) return;
  Judge(Now());
}

void Generation::Show(AnswerPiece piece, MonoTime now) {
  if (!is_live()) return answer_->Hold(std::move(piece));
  if (!is_shown_) {
    OnFirstShown(now);
  } else if (last_token_.has_value() && !piece.tokens.empty()) {
    const double each = Seconds(now - *last_token_) / static_cast<double>(piece.tokens.size());
    for (size_t i = 0; i < piece.tokens.size(); ++i) recorder().OnInterToken(step().tier, each);
  }
  last_token_ = now;
  Send(std::move(piece));
}

void Generation::OnFirstShown(MonoTime now) {
  record_.has_first_token = true;
  record_.summary.time_to_first_token_seconds = Seconds(now - request_->arrival());
}

// The first piece goes behind the prompt's scores and begins with its text.
void Generation::Send(AnswerPiece piece) {
  if (!std::exchange(is_shown_, true)) {
    if (answer_->has_scores()) owner_->OnPromptTokens(answer_->TakePromptTokens());
    piece.text.insert(0, answer_->echo());
  }
  if (!piece.empty()) owner_->OnPiece(draw_, std::move(piece));
}

void Generation::OnAttemptDone(const StatusOr<ExecuteResult>& result) {
  StopHold();
  TellPace();
  attempt_->lease.End();
  if (result.ok() || answer_->is_over()) attempt_->trial.OnAnswered();  // we end it at a stop string
  if (result.ok()) {
    attempt_->cached_tokens = result->usage.cached_tokens;
    attempt_->speculated_tokens = result->usage.speculated_tokens;
    attempt_->accepted_speculated_tokens = result->usage.accepted_speculated_tokens;
  }
  attempt_->trial.End();
  if (record_.queue_seconds < 0) {
    record_.queue_seconds =
        Seconds(attempt_->started - request_->arrival()) + (result.ok() ? result->queue_seconds : 0);
  }
  if (owner_->is_closed()) owner_->Cancel();  // also one that overflowed with the last tokens
  if (cancellation_.is_cancelled()) return OnCancelled(result);
  if (answer_->is_over()) {  // we cancelled the call; the worker's own count may be a step ahead
    attempt_->observer->OnCallEnd({});
    return OnAnswered(AnswerEnd::kStop, UsageSoFar());
  }
  if (!attempt_->protocol_error.ok()) return OnFailed(attempt_->protocol_error);
  if (!result.ok()) return OnFailed(result.status());
  if (const Status missing = answer_->CheckScores(); !missing.ok()) return OnFailed(missing);
  attempt_->observer->OnCallEnd({});
  OnAnswered(result->end, Usage(result->usage.completion_tokens));
}

// By the client, or because another answer of the request failed.
void Generation::OnCancelled(const StatusOr<ExecuteResult>& result) {
  using enum Recorder::AttemptResult;
  const Status reason = owner_->CancelReason();
  const auto as = reason.code() == StatusCode::kCancelled ? kAbandoned : ResultOf(reason);
  Record(as, result.ok() ? Usage(result->usage.completion_tokens) : UsageSoFar());
  Finish(reason);
}

void Generation::OnAnswered(AnswerEnd end, const TokenUsage& usage) {
  using enum Recorder::AttemptResult;
  const MonoTime now = Now();
  if (AnswerPiece rest = answer_->Finish(); !rest.empty()) Show(std::move(rest), now);
  const bool is_accepted = answer_->IsAcceptedBy(step().gate);
  Record(is_accepted ? kAccepted : kEscalated, usage);
  if (!is_accepted) {
    const size_t tier = step().tier;
    ToNextStep();
    recorder().OnEscalation(tier, step().tier);
    return Advance();
  }
  if (!is_live()) {
    OnFirstShown(now);
    Send(answer_->TakeHeld());
  } else if (!is_shown_) {
    Send({});  // an answer without text or tokens still has its prompt
  }
  const bool has_calls = end == AnswerEnd::kStop && answer_->text().has_tool_calls();
  record_.summary.end = has_calls ? AnswerEnd::kToolCalls : end;
  record_.summary.stop = answer_->text().stop();
  record_.summary.reason = shared_->ReasonOf(step_, FirstSignals());
  Finish({});
}

void Generation::OnFailed(const Status& error) {
  Log(LogLevel::kWarn, "attempt_failed",
      {{"request_id", request_->request_id()},
       {"tier", attempt_->report.tier},
       {"replica", attempt_->report.replica},
       {"tokens", answer_->log().size()},
       {"error", Message(error)}});
  attempt_->observer->OnCallEnd(error);
  // All of it has come but the word of its end.
  if (const auto end = answer_->EndOfLog(); end.has_value()) return OnAnswered(*end, UsageSoFar());
  Record(ResultOf(error), UsageSoFar());
  if (error.code() == StatusCode::kDeadlineExceeded) return Finish(ClientError(error));
  DispatchState& state = shared_->state();
  if (IsWorkerDeath(state.parts, step().tier, attempt_->replica, error, attempt_->has_started)) {
    if (const Status end = JudgeDeath(state, AfterDeath(error), losses_, error); !end.ok())
      return Finish(end);
  }
  is_interrupted_ = answer_->has_begun();
  failover_.OnFailure(attempt_->replica, error, attempt_->has_started || !is_interrupted_, Now());
  if (is_interrupted_) {
    answer_->Interrupt(attempt_->cached_tokens);
  } else {
    answer_.reset();
  }
  if (failover_.may_retry()) return Advance();
  if (is_shown_ || is_last_step()) return Finish(ClientError(error));
  ToNextStep();
  Advance();
}

DeadAttempt Generation::AfterDeath(const Status& error) const {
  const AnswerAttempt& report = attempt_->report;
  DeadAttempt dead{.tier = step().tier,
                   .model_digest = answer_->model_digest(),
                   .request = *request_,
                   .prompt = *answer_->prompt(),
                   .death = {.boarded = attempt_->boarded,
                             .had_begun = attempt_->has_started,
                             .silent = SilentProcess(attempt_->instance, error)}};
  dead.death.SetPlace(answer_->log().size(), size_t{report.resumed_tokens} + report.draft_tokens);
  return dead;
}

// `usage` is of the whole answer; an attempt has what it gave itself.
void Generation::Record(Recorder::AttemptResult result, const TokenUsage& usage) {
  const auto without_prompt = [](TokenUsage of) {
    of.prompt_tokens = of.cached_tokens = 0;
    return of;
  };
  AnswerAttempt& report = attempt_->report;
  TokenUsage own = usage;
  own.cached_tokens = attempt_->cached_tokens;
  own.completion_tokens -= report.resumed_tokens;
  own = BrokenOffUsage(result, own);
  report.usage = attempt_->pays_for_prompt ? own : without_prompt(own);
  if (report.draft_tokens > 0)
    report.accepted_draft_tokens = answer_->accepted_draft_tokens() - report.resumed_tokens;
  ReportSignals();
  RecordAttempt(shared_->state(), step().tier, result, report, record_.summary);
  const TokenUsage whole = BrokenOffUsage(result, usage);
  record_.summary.usage = draw_ == 0 ? whole : without_prompt(whole);
}

// What the answer was judged by; of a tier that another's first token chose that one, which it was chosen by.
void Generation::ReportSignals() {
  AnswerAttempt& report = attempt_->report;
  const AnswerSignals signals = answer_->text().signals();
  report.mean_logprob = signals.mean_logprob;
  report.min_logprob = signals.min_logprob;
  if (NeedsSignals(shared_->plan(), step_)) {
    report.mean_margin = signals.mean_margin;
    report.mean_entropy = signals.mean_entropy;
  }
  const Gate& gate = step().gate.is_open() ? step().choice : step().gate;
  report.score = gate.Score(step().gate.is_open() ? FirstSignals() : answer_->judged());
  report.threshold = gate.threshold(answer_->verdict());
}

// Of the answer as one attempt would have given it.
TokenUsage Generation::Usage(uint32_t completion_tokens) const {
  return {.prompt_tokens = static_cast<uint32_t>(answer_->prompt()->size()),
          .cached_tokens = answer_->CachedTokens(attempt_->cached_tokens),
          .completion_tokens = completion_tokens,
          .speculated_tokens = attempt_->speculated_tokens,
          .accepted_speculated_tokens = attempt_->accepted_speculated_tokens};
}

void Generation::ToNextStep() {
  first_ = FirstSignals();
  const size_t next = NextStep(shared_->plan(), step_, first_);
  owner_->OnNextTier(step().tier, shared_->plan()[next].tier);
  if (answer_.has_value() && answer_->has_begun()) draft_ = answer_->ToDraft();
  answer_.reset();
  step_ = next;
  failover_ = Failover(shared_->state().parts.retries);
  is_interrupted_ = false;
}

void Generation::Finish(const Status& status) {
  shared_->OfferToShadow(step().tier, status.ok() ? &*answer_ : nullptr, record_.summary.end);
  record_.status = status;
  record_.summary.total_seconds = Seconds(Now() - request_->arrival());
  owner_->OnEnd(draw_, step().tier, std::move(record_));
}

}  // namespace terrace
