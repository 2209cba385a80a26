#include "tools/cli/local_model.h"

#include <atomic>
#include <random>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "text/detokenizer.h"
#include "text/stop_matcher.h"

namespace terrace {
namespace {

SamplingParams ToSamplingParams(const v1::SamplingParams& from) {
  SamplingParams params;
  if (from.has_temperature()) params.temperature = from.temperature();
  if (from.has_top_k()) params.top_k = from.top_k();
  if (from.has_top_p()) params.top_p = from.top_p();
  if (from.has_min_p()) params.min_p = from.min_p();
  if (from.has_repetition_penalty()) params.repetition_penalty = from.repetition_penalty();
  if (from.has_presence_penalty()) params.presence_penalty = from.presence_penalty();
  if (from.has_frequency_penalty()) params.frequency_penalty = from.frequency_penalty();
  params.logit_bias.assign(from.logit_bias().begin(), from.logit_bias().end());
  params.seed = from.has_seed() ? from.seed() : std::random_device()();
  return params;
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

// Turns the tokens of one sequence into pieces. The engine's thread calls it; Close may come from any.
class LocalAnswer : public TokenSink {
 public:
  LocalAnswer(const Tokenizer& tokenizer, const v1::GenerateRequest& request, std::string name,
              OnAnswerPiece on_piece)
      : detokenizer_(tokenizer),
        stops_({request.stop().begin(), request.stop().end()}),
        name_(std::move(name)),
        on_piece_(std::move(on_piece)) {}

  void Close() { is_closed_ = true; }

  void OnTokens(uint32_t, std::span<const SampledToken> tokens) override {
    v1::GenerateResponse piece;
    for (const SampledToken& token : tokens) {
      if (stops_.stopped()) break;
      if (token_count_ == 0) first_token_ = RealClock().Now();
      ++token_count_;
      sum_logprob_ += token.logprob;
      v1::OutputToken& out = *piece.add_tokens();
      out.set_id(token.token);
      out.set_logprob(token.logprob);
      for (const TokenLogprob& top : token.top) {
        v1::TokenLogprob& alternative = *out.add_top();
        alternative.set_token(top.token);
        alternative.set_logprob(top.logprob);
      }
      piece.mutable_text()->append(stops_.Push(detokenizer_.Push(token.token)));
    }
    if (stops_.stopped()) Close();  // the engine drops the sequence
    if (piece.tokens_size() > 0) on_piece_(std::move(piece));
  }

  void OnPromptScores(uint32_t, std::span<const SampledToken>) override {}

  void OnFinish(const SequenceResult& result) override {
    const bool is_cut = result.reason == FinishReason::kCancelled || result.reason == FinishReason::kError;
    if (is_cut && !stops_.stopped()) {
      on_piece_(result.error.ok() ? Cancelled("cancelled") : result.error);
      return;
    }
    v1::GenerateResponse piece;
    piece.set_text(stops_.Push(detokenizer_.Finish()) + stops_.Finish());
    v1::GenerateFinished& finished = *piece.mutable_finished();
    finished.set_reason(stops_.stopped() ? v1::FINISH_REASON_STOP : ToProto(result.reason));
    finished.set_stop(stops_.matched());
    finished.mutable_usage()->set_prompt_tokens(result.stats.prompt_tokens);
    finished.mutable_usage()->set_cached_tokens(result.stats.cached_tokens);
    finished.mutable_usage()->set_completion_tokens(token_count_);
    finished.set_tier(name_);
    if (token_count_ > 0) finished.set_time_to_first_token_seconds(Seconds(first_token_ - start_));
    finished.set_total_seconds(Seconds(RealClock().Now() - start_));
    v1::TierAttempt& attempt = *finished.add_attempts();
    attempt.set_tier(name_);
    *attempt.mutable_usage() = finished.usage();
    attempt.set_mean_logprob(token_count_ == 0 ? 0 : sum_logprob_ / token_count_);
    attempt.set_accepted(true);
    on_piece_(std::move(piece));
  }

  bool is_closed() const override { return is_closed_; }

 private:
  Detokenizer detokenizer_;
  StopMatcher stops_;
  const std::string name_;
  const OnAnswerPiece on_piece_;
  const MonoTime start_ = RealClock().Now();
  MonoTime first_token_;
  uint32_t token_count_ = 0;
  double sum_logprob_ = 0;
  std::atomic<bool> is_closed_ = false;
};

class LocalCall : public AnswerCall {
 public:
  explicit LocalCall(std::shared_ptr<LocalAnswer> answer) : answer_(std::move(answer)) {}
  void Cancel() override { answer_->Close(); }

 private:
  const std::shared_ptr<LocalAnswer> answer_;
};

}  // namespace

StatusOr<std::unique_ptr<LocalModel>> LocalModel::Open(const OpenEngineOptions& options) {
  ASSIGN_OR_RETURN(OpenedEngine opened, OpenEngine(options));
  return std::unique_ptr<LocalModel>(new LocalModel(std::move(opened)));
}

StatusOr<SequenceSpec> LocalModel::MakeSpec(const v1::GenerateRequest& request) const {
  const TextAssets& text = *opened_.files->text;
  SequenceSpec spec;
  switch (request.input_case()) {
    case v1::GenerateRequest::kPrompt:
      spec.prompt = text.EncodePrompt(request.prompt());
      break;
    case v1::GenerateRequest::kChat: {
      std::vector<ChatMessage> messages;
      for (const v1::ChatMessage& message : request.chat().messages()) {
        messages.push_back({.role = message.role(), .content = message.content()});
      }
      ASSIGN_OR_RETURN(spec.prompt, text.EncodeChat(messages));
      break;
    }
    case v1::GenerateRequest::kPromptTokens:
      spec.prompt.assign(request.prompt_tokens().ids().begin(), request.prompt_tokens().ids().end());
      break;
    case v1::GenerateRequest::INPUT_NOT_SET:
      return InvalidArgument("a prompt is missing");
  }
  spec.request_id = request.request_id();
  spec.sampling = ToSamplingParams(request.sampling());
  spec.max_tokens = request.max_tokens();
  spec.stop_tokens.assign(request.stop_tokens().begin(), request.stop_tokens().end());
  spec.ignore_eos = request.ignore_eos();
  spec.top_logprobs = request.top_logprobs();
  return spec;
}

std::unique_ptr<AnswerCall> LocalModel::Start(const v1::GenerateRequest& request, OnAnswerPiece on_piece) {
  const auto answer = std::make_shared<LocalAnswer>(*opened_.files->text->tokenizer, request,
                                                    opened_.files->config.name, on_piece);
  StatusOr<SequenceSpec> spec = MakeSpec(request);
  const Status status = spec.ok() ? opened_.engine->Submit(*std::move(spec), answer) : spec.status();
  if (!status.ok()) on_piece(status);
  return std::make_unique<LocalCall>(answer);
}

StatusOr<v1::ListModelsResponse> LocalModel::ListModels() {
  v1::ListModelsResponse response;
  v1::Model& model = *response.add_models();
  model.set_id(opened_.files->config.name);
  model.set_ready(true);
  model.set_context_length(opened_.context_length);
  model.set_parameters(opened_.parameters);
  return response;
}

}  // namespace terrace
