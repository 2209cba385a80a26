#include "router/dispatch/scoring.h"

#include <algorithm>
#include <utility>

namespace terrace {

class Scoring::Events : public ExecuteEvents {
 public:
  explicit Events(std::shared_ptr<Scoring> owner) : owner_(std::move(owner)) {}
  void OnStarted(uint32_t) override {  // how much is cached the result says too
    if (!is_over_) owner_->has_started_ = true;
  }
  void OnTokens(std::vector<WorkerToken>) override {}  // none are asked for
  void OnPromptScores(std::vector<WorkerToken> scores) override {
    if (!is_over_) owner_->OnScores(scores);
  }
  void OnDone(StatusOr<ExecuteResult> result) override {
    if (!std::exchange(is_over_, true)) owner_->OnAttemptDone(result);
  }

 private:
  const std::shared_ptr<Scoring> owner_;
  bool is_over_ = false;  // nothing that still comes counts, as in Generation
};

Scoring::Scoring(std::shared_ptr<SharedRequest> shared, Admission::Ticket ticket,
                 Dispatcher::OnScore on_score)
    : shared_(std::move(shared)),
      request_(shared_->request()),
      ticket_(std::move(ticket)),
      on_score_(std::move(on_score)) {
  record_ = RequestRecord::Of(*request_);
  record_.model = shared_->model();
  record_.summary.reason = shared_->ReasonOf(0, {});
}

// As in Generation, nothing may be touched after a call has been started.
void Scoring::Advance() {
  if (cancellation_.is_cancelled()) return Finish(CancelReason());
  if (Now() >= request_->deadline()) return Finish(DeadlinePassed());
  const Status refused = TryStart();
  if (refused.ok()) return;
  if (Reason(refused) == kKeptApartReason) return Wait();
  const bool is_last_word = failure_.ok() || Reason(refused) == kPoisonReason;
  Finish(is_last_word ? refused : failure_);
}

Status Scoring::TryStart() {
  const auto view = state().parts.cluster.View();
  const TierView& in = view->tiers[tier()];
  if (in.text == nullptr) return NoCapacity(in);
  ASSIGN_OR_RETURN(prompt_, shared_->PromptFor(in));
  // A prompt that is scored is computed whole, whatever is cached.
  const AttemptQuery query{.request = *request_,
                           .view = *view,
                           .tier = tier(),
                           .prompt = *prompt_,
                           .tried = tried_,
                           .waited = waiting_since_.has_value() ? Now() - *waiting_since_ : Duration(0)};
  RETURN_IF_ERROR(CheckQuarantine(state(), query));
  ASSIGN_OR_RETURN(Boarded boarded, PickApart(state(), query, [&](const std::set<ReplicaId>& excluded) {
                     return PickAndCount(state(), *request_, *view, tier(), {}, excluded);
                   }));
  RETURN_IF_ERROR(CountAttempt(state(), tier(), tried_.empty(), worker_error_));
  const ReplicaView* replica = boarded.picked.replica;
  waiting_since_.reset();
  boarded_ = state().quarantine->deaths();
  trial_ = std::move(boarded.trial);
  observer_ = replica->observer;
  lease_ = InFlightLease(replica->in_flight, static_cast<uint32_t>(prompt_->size()));
  tried_.insert(replica->id);
  replica_ = replica->id;
  instance_ = replica->description.instance;
  model_digest_ = in.model_digest;
  has_started_ = false;
  record_.summary.tier = in.name;
  attempt_ = {.tier = in.name, .replica = replica->address};
  scores_.emplace(prompt_, in.text, in.vocab_size, request_->top_logprobs());
  protocol_error_ = {};
  slot_ = cancellation_.NextSlot();
  ExecuteSpec spec;
  spec.request_id = request_->request_id();
  spec.instance = replica->description.instance;
  spec.prompt = prompt_;
  spec.sampling.temperature = 0;
  spec.top_logprobs = request_->top_logprobs();
  spec.score_prompt = true;
  spec.priority = request_->priority();
  spec.cache_salt = request_->cache_salt();
  spec.traceparent = request_->trace().Header();
  spec.tracestate = request_->trace().state;
  spec.deadline = request_->deadline();
  const auto slot = slot_;
  const auto client = replica->client;
  slot->Set(client->Execute(spec, std::make_shared<Events>(shared_from_this())));
  return {};
}

Status Scoring::CancelReason() const { return state().running.has_ended() ? RouterDraining() : ClientGone(); }

void Scoring::Wait() {
  if (!waiting_since_.has_value()) waiting_since_ = Now();
  state().waiting.Add([self = shared_from_this()] { self->Advance(); });
}

void Scoring::OnScores(const std::vector<WorkerToken>& scores) {
  if (!protocol_error_.ok()) return;
  protocol_error_ = scores_->Add(scores);
  if (!protocol_error_.ok()) slot_->Cancel();
}

void Scoring::OnAttemptDone(const StatusOr<ExecuteResult>& result) {
  lease_.End();
  if (result.ok()) trial_.OnAnswered();
  trial_.End();
  if (cancellation_.is_cancelled()) {
    const Status reason = CancelReason();
    const bool is_clients = reason.code() == StatusCode::kCancelled;
    RecordBrokenOff(is_clients ? Recorder::AttemptResult::kAbandoned : ResultOf(reason));
    return Finish(reason);
  }
  if (!protocol_error_.ok()) return OnFailed(protocol_error_);
  if (!result.ok()) return OnFailed(result.status());
  if (const Status missing = scores_->CheckComplete(); !missing.ok()) return OnFailed(missing);
  observer_->OnCallEnd({});
  TakeScores();
  attempt_.usage = result->usage;
  attempt_.mean_logprob = answer_.sum_logprob / static_cast<double>(answer_.tokens.size());
  for (const AnswerToken& token : answer_.tokens)
    attempt_.min_logprob = std::min(attempt_.min_logprob, double{token.logprob});
  RecordAttempt(state(), tier(), Recorder::AttemptResult::kAccepted, attempt_, record_.summary);
  answer_.price_usd = attempt_.price_usd;
  record_.queue_seconds = result->queue_seconds;
  Finish({});
}

void Scoring::TakeScores() {
  answer_ = {.tokens = scores_->Take(), .tier = attempt_.tier};
  answer_.first_token = answer_.tokens.front().id;
  answer_.tokens.erase(answer_.tokens.begin());
  for (const AnswerToken& token : answer_.tokens) answer_.sum_logprob += token.logprob;
}

void Scoring::OnFailed(const Status& error) {
  observer_->OnCallEnd(error);
  RecordBrokenOff(ResultOf(error));
  failure_ = ClientError(error);
  worker_error_ = error;
  if (IsWorkerDeath(state().parts, tier(), replica_, error, has_started_)) {
    const DeadAttempt dead{
        .tier = tier(),
        .model_digest = model_digest_,
        .request = *request_,
        .prompt = *prompt_,
        .death = {.boarded = boarded_, .had_begun = has_started_, .silent = SilentProcess(instance_, error)}};
    if (const Status end = JudgeDeath(state(), dead, losses_, error); !end.ok()) return Finish(end);
  }
  if (IsRetryable(error) && tried_.size() < state().parts.retries.max_attempts) return Advance();
  Finish(failure_);
}

// Scores are of the prompt, which is all that a score request makes a worker compute.
void Scoring::RecordBrokenOff(Recorder::AttemptResult result) {
  const bool is_counted = result == Recorder::AttemptResult::kAbandoned || scores_->has_any();
  if (is_counted) attempt_.usage.prompt_tokens = static_cast<uint32_t>(prompt_->size());
  RecordAttempt(state(), tier(), result, attempt_, record_.summary);
}

void Scoring::Finish(const Status& status) {
  record_.status = status;
  record_.summary.total_seconds = Seconds(Now() - request_->arrival());
  state().parts.recorder.OnRequest(record_);
  ticket_.Charge(record_.summary.usage.prompt_tokens, 0);
  { const Admission::Ticket given_back = std::move(ticket_); }
  if (status.ok()) {
    on_score_(std::move(answer_));
  } else {
    on_score_(status);
  }
}

}  // namespace terrace
