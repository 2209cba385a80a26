#include "router/dispatch/answers.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "router/dispatch/generation.h"

namespace terrace {
namespace {

void SetChoice(uint32_t choice, AnswerSummary& summary) {
  for (AnswerAttempt& attempt : summary.attempts) attempt.choice = choice;
}

// `records` are in the order of their choices.
RequestRecord Total(const Request& request, const std::vector<const AnswerRecord*>& records) {
  RequestRecord total = RequestRecord::Of(request);
  total.summary = records.front()->summary;
  total.has_first_token = records.front()->has_first_token;
  total.queue_seconds = records.front()->queue_seconds;
  for (const AnswerRecord* record : records) {
    if (record != records.front()) AddCosts(record->summary, total.summary);
    if (total.summary.tier.empty()) total.summary.tier = record->summary.tier;
    if (total.queue_seconds < 0) total.queue_seconds = record->queue_seconds;
    if (!record->has_first_token) continue;
    const double first = record->summary.time_to_first_token_seconds;
    double& earliest = total.summary.time_to_first_token_seconds;
    earliest = total.has_first_token ? std::min(earliest, first) : first;
    total.has_first_token = true;
  }
  return total;
}

}  // namespace

Answers::Answers(std::shared_ptr<SharedRequest> shared, Admission::Ticket ticket,
                 std::shared_ptr<AnswerSink> sink)
    : shared_(std::move(shared)),
      request_(shared_->request()),
      sink_(std::move(sink)),
      ticket_(std::move(ticket)),
      running_(request_->draws()) {}

Answers::Draw& Answers::At(uint32_t draw) {
  if (draws_.empty()) draws_.resize(request_->draws());
  return draws_[draw];
}

void Answers::Start() {
  std::vector<std::shared_ptr<Generation>> all;  // what is not started yet is held here alone
  for (uint32_t draw = 0; draw < request_->draws(); ++draw) {
    all.push_back(std::make_shared<Generation>(shared_from_this(), shared_, draw));
  }
  generations_.assign(all.begin(), all.end());
  sink_->OnRoom([weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->Resume();
  });
  for (const auto& generation : all) generation->Start();
}

void Answers::Cancel() { CancelAllBut(request_->draws()); }

void Answers::CancelAllBut(uint32_t draw) {
  for (uint32_t other = 0; other < generations_.size(); ++other) {
    const auto running = other == draw ? nullptr : generations_[other].lock();
    if (running != nullptr) running->Cancel();
  }
}

void Answers::Resume() {
  for (const auto& each : generations_) {
    if (const auto running = each.lock()) running->Resume();
  }
}

Status Answers::CancelReason() const {
  std::lock_guard lock(mutex_);
  if (!failure_.ok()) return failure_;
  if (sink_->is_too_slow()) return ClientTooSlow();
  const bool is_ours = shared_->state().running.has_ended() && !sink_->is_closed();
  return is_ours ? RouterDraining() : ClientGone();
}

void Answers::OnPromptTokens(std::vector<AnswerToken> tokens) {
  std::lock_guard lock(mutex_);
  if (request_->is_ranked()) {
    prompt_tokens_ = std::move(tokens);
  } else if (failure_.ok()) {
    sink_->OnPromptTokens(std::move(tokens));
  }
}

void Answers::OnPiece(uint32_t draw, AnswerPiece piece) {
  std::lock_guard lock(mutex_);
  if (request_->is_ranked()) {
    At(draw).held.Append(std::move(piece));
  } else if (failure_.ok()) {
    piece.choice = draw;
    sink_->OnPiece(std::move(piece));
  }
}

void Answers::OnEnd(uint32_t draw, size_t tier, AnswerRecord record) {
  ticket_.Leave(tier);
  bool is_first_failure = false, is_last = false;
  {
    std::lock_guard lock(mutex_);
    is_first_failure = failure_.ok() && !record.status.ok();
    if (is_first_failure) failure_ = record.status;
    AnswerRecord& kept = At(draw).record = std::move(record);
    SetChoice(draw, kept.summary);
    if (failure_.ok() && !request_->is_ranked()) sink_->OnChoiceEnd(draw, kept.summary);
    is_last = --running_ == 0;
  }
  if (is_first_failure) CancelAllBut(draw);
  if (is_last) Finish();
}

// Nobody else is left: the generations are over.
void Answers::Finish() {
  if (request_->is_ranked() && failure_.ok()) SendBest();
  std::vector<const AnswerRecord*> records;
  for (const Draw& draw : draws_) records.push_back(&draw.record);
  RequestRecord total = Total(*request_, records);
  total.model = shared_->model();
  total.status = failure_;
  total.answers = request_->draws();
  total.summary.total_seconds = Seconds(shared_->Now() - request_->arrival());
  shared_->state().parts.recorder.OnRequest(total);
  ticket_.Charge(total.summary.usage.prompt_tokens, total.summary.usage.completion_tokens);
  { const Admission::Ticket given_back = std::move(ticket_); }
  if (failure_.ok()) {
    sink_->OnFinish(std::move(total.summary));
  } else {
    sink_->OnFinish(failure_);
  }
}

// Sorts the draws, best first, and sends as many as were asked for. The first one bears what all the rest,
// and the prompt, cost.
void Answers::SendBest() {
  const TokenUsage of_first_draw = draws_.front().record.summary.usage;
  draws_.front().record.summary.usage.prompt_tokens = 0;
  draws_.front().record.summary.usage.cached_tokens = 0;
  std::stable_sort(draws_.begin(), draws_.end(), [](const Draw& a, const Draw& b) {
    return a.record.summary.attempts.back().mean_logprob > b.record.summary.attempts.back().mean_logprob;
  });
  AnswerSummary& best = draws_.front().record.summary;
  best.usage.prompt_tokens = of_first_draw.prompt_tokens;
  best.usage.cached_tokens = of_first_draw.cached_tokens;
  const auto own_attempts = std::exchange(best.attempts, {});
  for (size_t i = request_->choices(); i < draws_.size(); ++i) {
    for (AnswerAttempt& attempt : draws_[i].record.summary.attempts) attempt.accepted = false;
    AddCosts(draws_[i].record.summary, best);
  }
  best.attempts.insert(best.attempts.end(), own_attempts.begin(), own_attempts.end());
  draws_.resize(request_->choices());

  const double now = Seconds(shared_->Now() - request_->arrival());
  if (request_->prompt_logprobs().has_value()) sink_->OnPromptTokens(std::move(prompt_tokens_));
  for (uint32_t choice = 0; choice < draws_.size(); ++choice) {
    Draw& draw = draws_[choice];
    AnswerSummary& summary = draw.record.summary;
    SetChoice(choice, summary);
    summary.time_to_first_token_seconds = summary.total_seconds = now;
    draw.held.choice = choice;
    if (!draw.held.empty()) sink_->OnPiece(std::move(draw.held));
    sink_->OnChoiceEnd(choice, summary);
  }
}

}  // namespace terrace
