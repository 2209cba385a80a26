#include "tools/cli/sequence_answers.h"

#include <algorithm>
#include <functional>
#include <random>
#include <span>
#include <utility>

#include "base/rng.h"
#include "text/detokenizer.h"
#include "text/stop_matcher.h"
#include "worker/server/proto_convert.h"

namespace terrace {
namespace {

constexpr uint32_t kMaxChoices = 16;  // as the router has it

// A seed is drawn where none is given.
StatusOr<SamplingParams> SamplingOf(v1::SamplingParams from) {
  if (!from.has_seed()) from.set_seed(std::random_device()());
  return ToSamplingParams(from);
}

void ToProto(const SampledToken& token, v1::OutputToken& out) {
  out.set_id(token.token);
  out.set_logprob(token.logprob);
  for (const TokenLogprob& top : token.top) {
    v1::TokenLogprob& alternative = *out.add_top();
    alternative.set_token(top.token);
    alternative.set_logprob(top.logprob);
  }
}

std::string EchoOf(const v1::GenerateRequest& request, const std::vector<TokenId>& prompt,
                   const Tokenizer& tokenizer) {
  if (!request.echo()) return "";
  return request.has_prompt() ? request.prompt() : PromptText(tokenizer, prompt);
}

}  // namespace

StatusOr<SequenceSpec> FirstSequence(const v1::GenerateRequest& request, const TextAssets& text,
                                     uint32_t context_length) {
  SequenceSpec spec;
  switch (request.input_case()) {
    case v1::GenerateRequest::kPrompt:
      spec.prompt = text.EncodePrompt(request.prompt());
      break;
    case v1::GenerateRequest::kChat: {
      ASSIGN_OR_RETURN(spec.prompt, text.EncodeChat(MessagesOf(request.chat())));
      break;
    }
    case v1::GenerateRequest::kPromptTokens:
      spec.prompt.assign(request.prompt_tokens().ids().begin(), request.prompt_tokens().ids().end());
      break;
    case v1::GenerateRequest::INPUT_NOT_SET:
      return InvalidArgument("a prompt is missing");
  }
  if (spec.prompt.empty()) return InvalidArgument("the prompt has no token");
  spec.request_id = request.request_id();
  ASSIGN_OR_RETURN(spec.sampling, SamplingOf(request.sampling()));
  spec.max_tokens = request.max_tokens();
  spec.stop_tokens.assign(request.stop_tokens().begin(), request.stop_tokens().end());
  spec.ignore_eos = request.ignore_eos();
  if (request.has_speculation_max_tokens()) spec.speculation = request.speculation_max_tokens();
  spec.top_logprobs = request.top_logprobs();
  if (request.prompt_logprobs() && spec.max_tokens == 0 && spec.prompt.size() < context_length) {
    spec.max_tokens = context_length - static_cast<uint32_t>(spec.prompt.size());  // 0 would mean none
  }
  if (request.n() > kMaxChoices || request.best_of() > kMaxChoices) {
    return InvalidArgument("at most ", kMaxChoices, " answers");
  }
  if (request.best_of() > 0 && request.best_of() < ChoicesOf(request)) {
    return InvalidArgument("best_of: ", request.best_of(), " is less than n: ", ChoicesOf(request));
  }
  return spec;
}

// Turns the tokens of one sequence into pieces.
class SequenceAnswers::Sink : public TokenSink {
 public:
  Sink(std::shared_ptr<SequenceAnswers> owner, uint32_t draw, const std::vector<TokenId>& prompt)
      : owner_(std::move(owner)),
        draw_(draw),
        detokenizer_(*owner_->tokenizer_),
        stops_({owner_->request_.stop().begin(), owner_->request_.stop().end()}) {
    first_.set_text(EchoOf(owner_->request_, prompt, *owner_->tokenizer_));
    if (owner_->request_.prompt_logprobs() && draw == 0) first_.add_prompt_tokens()->set_id(prompt.front());
  }

  void OnPromptScores(uint32_t, std::span<const SampledToken> scores) override {
    for (const SampledToken& score : scores) ToProto(score, *first_.add_prompt_tokens());
  }

  void OnTokens(uint32_t, std::span<const SampledToken> tokens) override {
    if (tokens.empty() || stops_.stopped()) return;
    v1::GenerateResponse piece = TakeFirst();
    for (const SampledToken& token : tokens) {
      if (stops_.stopped()) break;
      if (token_count_ == 0) first_token_ = RealClock().Now();
      ++token_count_;
      sum_logprob_ += token.logprob;
      min_logprob_ = std::min(min_logprob_, double{token.logprob});
      ToProto(token, *piece.add_tokens());
      piece.mutable_text()->append(stops_.Push(detokenizer_.Push(token.token)));
    }
    is_stopped_ = stops_.stopped();
    owner_->OnPiece(draw_, std::move(piece));
  }

  void OnFinish(const SequenceResult& result) override {
    const bool is_cut = result.reason == FinishReason::kCancelled || result.reason == FinishReason::kError;
    if (is_cut && !stops_.stopped()) {
      return owner_->Fail(result.error.ok() ? Cancelled("cancelled") : result.error);
    }
    v1::GenerateResponse rest = TakeFirst();
    rest.mutable_text()->append(stops_.Push(detokenizer_.Finish()) + stops_.Finish());
    if (!rest.text().empty() || rest.prompt_tokens_size() > 0) owner_->OnPiece(draw_, std::move(rest));
    owner_->OnEnd(draw_, Finished(result));
  }

  bool is_closed() const override { return is_stopped_ || owner_->is_closed_; }

 private:
  // What goes before the answer: once.
  v1::GenerateResponse TakeFirst() { return std::exchange(first_, {}); }

  v1::GenerateFinished Finished(const SequenceResult& result) const {
    v1::GenerateFinished finished;
    finished.set_reason(stops_.stopped() ? v1::FINISH_REASON_STOP : ToProto(result.reason));
    finished.set_stop(stops_.matched());
    if (draw_ == 0) {
      finished.mutable_usage()->set_prompt_tokens(result.stats.prompt_tokens);
      finished.mutable_usage()->set_cached_tokens(result.stats.cached_tokens);
    }
    finished.mutable_usage()->set_completion_tokens(token_count_);
    finished.mutable_usage()->set_speculated_tokens(result.stats.speculated_tokens);
    finished.mutable_usage()->set_accepted_speculated_tokens(result.stats.accepted_speculated_tokens);
    finished.set_tier(owner_->name_);
    if (token_count_ > 0) finished.set_time_to_first_token_seconds(Seconds(first_token_ - owner_->start_));
    finished.set_total_seconds(Seconds(RealClock().Now() - owner_->start_));
    v1::TierAttempt& attempt = *finished.add_attempts();
    attempt.set_tier(owner_->name_);
    *attempt.mutable_usage() = finished.usage();
    attempt.set_mean_logprob(token_count_ == 0 ? 0 : sum_logprob_ / token_count_);
    attempt.set_min_logprob(min_logprob_);
    attempt.set_accepted(true);
    return finished;
  }

  const std::shared_ptr<SequenceAnswers> owner_;
  const uint32_t draw_;
  Detokenizer detokenizer_;
  StopMatcher stops_;
  v1::GenerateResponse first_;
  MonoTime first_token_;
  uint32_t token_count_ = 0;
  double sum_logprob_ = 0, min_logprob_ = 0;  // log-probabilities are at most 0
  std::atomic<bool> is_stopped_ = false;      // by a text: the engine drops the sequence
};

SequenceAnswers::SequenceAnswers(std::shared_ptr<const Tokenizer> tokenizer, v1::GenerateRequest request,
                                 std::string name, OnAnswerPiece on_piece)
    : tokenizer_(std::move(tokenizer)),
      request_(std::move(request)),
      name_(std::move(name)),
      on_piece_(std::move(on_piece)),
      held_(draws()),
      running_(draws()) {}

Status SequenceAnswers::Start(const SequenceSpec& first, const Run& run) {
  for (uint32_t draw = 0; draw < draws(); ++draw) {
    SequenceSpec spec = first;
    spec.sampling.seed = ChoiceSeed(first.sampling.seed, draw);
    spec.score_prompt = draw == 0 && request_.prompt_logprobs();
    const auto sink = std::make_shared<Sink>(shared_from_this(), draw, spec.prompt);
    RETURN_IF_ERROR(run(std::move(spec), sink));
  }
  return {};
}

void SequenceAnswers::Fail(const Status& error) {
  Close();
  std::lock_guard lock(mutex_);
  if (!std::exchange(is_over_, true)) on_piece_(error);
}

void SequenceAnswers::OnPiece(uint32_t draw, v1::GenerateResponse piece) {
  std::lock_guard lock(mutex_);
  if (is_ranked()) {
    held_[draw].Add(piece);
  } else {
    Send(draw, std::move(piece));
  }
}

void SequenceAnswers::OnEnd(uint32_t draw, v1::GenerateFinished finished) {
  std::lock_guard lock(mutex_);
  --running_;
  v1::GenerateResponse last;
  *last.mutable_finished() = std::move(finished);
  if (!is_ranked()) return Send(draw, std::move(last));
  held_[draw].Add(last);
  if (running_ == 0) SendBest();
}

// The first one bears what the prompt and those that are not sent cost.
void SequenceAnswers::SendBest() {
  v1::GenerateResponse scores;
  scores.mutable_prompt_tokens()->Assign(held_[0].prompt_tokens.begin(), held_[0].prompt_tokens.end());
  if (scores.prompt_tokens_size() > 0) Send(0, std::move(scores));
  v1::Usage usage;
  usage.set_prompt_tokens(held_[0].finished.usage().prompt_tokens());
  usage.set_cached_tokens(held_[0].finished.usage().cached_tokens());
  held_[0].finished.mutable_usage()->clear_prompt_tokens();
  held_[0].finished.mutable_usage()->clear_cached_tokens();
  std::ranges::stable_sort(held_, std::greater(),
                           [](const Answer& answer) { return answer.finished.attempts(0).mean_logprob(); });
  google::protobuf::RepeatedPtrField<v1::TierAttempt> attempts;
  for (uint32_t i = ChoicesOf(request_); i < draws(); ++i) {
    AddUsage(held_[i].finished.usage(), usage);
    *attempts.Add() = held_[i].finished.attempts(0);
    attempts.rbegin()->set_accepted(false);
  }
  v1::GenerateFinished& best = held_[0].finished;
  AddUsage(best.usage(), usage);
  *best.mutable_usage() = usage;
  *attempts.Add() = best.attempts(0);
  best.mutable_attempts()->Swap(&attempts);
  for (uint32_t choice = 0; choice < ChoicesOf(request_); ++choice) {
    Answer& answer = held_[choice];
    v1::GenerateResponse whole;
    whole.set_text(std::move(answer.text));
    whole.mutable_tokens()->Assign(answer.tokens.begin(), answer.tokens.end());
    answer.finished.set_total_seconds(Seconds(RealClock().Now() - start_));
    answer.finished.set_time_to_first_token_seconds(
        answer.finished.total_seconds());  // none was shown before
    *whole.mutable_finished() = std::move(answer.finished);
    Send(choice, std::move(whole));
  }
}

void SequenceAnswers::Send(uint32_t choice, v1::GenerateResponse piece) {
  if (is_over_) return;  // another answer has failed
  piece.set_choice(choice);
  is_over_ = running_ == 0 && piece.has_finished() && (!is_ranked() || choice + 1 == ChoicesOf(request_));
  on_piece_(std::move(piece));
}

}  // namespace terrace
