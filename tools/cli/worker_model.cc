#include "tools/cli/worker_model.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/grpc_status.h"
#include "grpcpp/support/client_callback.h"
#include "tools/cli/sequence_answers.h"
#include "worker/server/proto_convert.h"

namespace terrace {
namespace {

v1::ExecuteRequest ToProto(const SequenceSpec& spec) {
  v1::ExecuteRequest out;
  out.set_request_id(spec.request_id);
  out.mutable_prompt_tokens()->Add(spec.prompt.begin(), spec.prompt.end());
  ToProto(spec.sampling, *out.mutable_sampling());
  out.set_max_tokens(spec.max_tokens);
  out.mutable_stop_tokens()->Add(spec.stop_tokens.begin(), spec.stop_tokens.end());
  out.set_ignore_eos(spec.ignore_eos);
  out.set_top_logprobs(spec.top_logprobs);
  out.set_score_prompt(spec.score_prompt);
  if (spec.speculation.has_value()) out.mutable_speculation()->set_max_tokens(*spec.speculation);
  return out;
}

std::vector<SampledToken> FromProto(const google::protobuf::RepeatedPtrField<v1::GeneratedToken>& tokens) {
  std::vector<SampledToken> out;
  for (const v1::GeneratedToken& token : tokens) {
    SampledToken& next = out.emplace_back();
    next.token = token.token();
    next.logprob = token.logprob();
    for (const v1::TokenLogprob& top : token.top()) next.top.push_back({top.token(), top.logprob()});
  }
  return out;
}

// One sequence of a worker, which fills its sink as an engine would. Keeps itself alive until gRPC is done
// with it.
class SequenceCall : public grpc::ClientReadReactor<v1::ExecuteEvent> {
 public:
  static std::shared_ptr<SequenceCall> Start(v1::Worker::Stub& worker, const std::string& address,
                                             v1::ExecuteRequest request, uint32_t vocab_size,
                                             std::shared_ptr<TokenSink> sink) {
    const auto call =
        std::make_shared<SequenceCall>(address, std::move(request), vocab_size, std::move(sink));
    call->self_ = call;
    worker.async()->Execute(&call->context_, &call->request_, call.get());
    call->StartRead(&call->event_);
    call->StartCall();
    return call;
  }
  SequenceCall(std::string address, v1::ExecuteRequest request, uint32_t vocab_size,
               std::shared_ptr<TokenSink> sink)
      : address_(std::move(address)),
        request_(std::move(request)),
        vocab_size_(vocab_size),
        sink_(std::move(sink)) {
    result_.stats.prompt_tokens = static_cast<uint32_t>(request_.prompt_tokens_size());
  }

  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool is_ok) override {
    if (!is_ok) return;
    const Status taken = Take(event_);
    if (!taken.ok()) broken_ = taken;
    if (!taken.ok() || sink_->is_closed()) context_.TryCancel();
    StartRead(&event_);
  }

  void OnDone(const grpc::Status& status) override {
    const std::shared_ptr<SequenceCall> self = std::move(self_);
    if (!broken_.ok()) {
      SetError(broken_);
    } else if (!is_finished_) {
      SetError(status.ok() ? Internal("the worker ended the stream without its last message")
                           : Explain(FromGrpcStatus(status, context_)));
    }
    sink_->OnFinish(result_);
  }

 private:
  Status Take(const v1::ExecuteEvent& event) {
    if (is_finished_ || !broken_.ok()) return broken_;
    if (event.has_started()) {
      result_.stats.cached_tokens = event.started().cached_tokens();
      sink_->OnStarted(event.started().cached_tokens());
    } else if (event.has_prompt_scores()) {
      sink_->OnPromptScores(event.prompt_scores().first_index(), FromProto(event.prompt_scores().scores()));
    } else if (event.has_tokens()) {
      const v1::TokenBatch& batch = event.tokens();
      if (batch.first_index() != tokens_)
        return WithReason(Internal("token ", tokens_, " of the answer was lost or repeated"), "tokens_lost");
      const auto is_no_token = [this](const v1::GeneratedToken& token) {
        return token.token() < 0 || static_cast<uint32_t>(token.token()) >= vocab_size_;
      };
      if (std::ranges::any_of(batch.tokens(), is_no_token))
        return WithReason(Internal("a token that the vocabulary does not have came"), "worker_protocol");
      tokens_ += static_cast<uint32_t>(batch.tokens_size());
      sink_->OnTokens(batch.first_index(), FromProto(batch.tokens()));
    } else if (event.has_finished()) {
      return Finish(event.finished());
    }
    return {};
  }

  Status Finish(const v1::ExecuteFinished& finished) {
    if (finished.reason() != v1::FINISH_REASON_STOP && finished.reason() != v1::FINISH_REASON_LENGTH)
      return WithReason(Internal("the answer ended with finish reason ", static_cast<int>(finished.reason())),
                        "worker_protocol");
    if (finished.generated_tokens() != tokens_)
      return WithReason(
          Internal("the answer has ", finished.generated_tokens(), " tokens, ", tokens_, " came"),
          "tokens_lost");
    is_finished_ = true;
    result_.reason =
        finished.reason() == v1::FINISH_REASON_STOP ? FinishReason::kStop : FinishReason::kLength;
    result_.stats.prompt_tokens = finished.prompt_tokens();
    result_.stats.generated_tokens = finished.generated_tokens();
    result_.stats.cached_tokens = finished.cached_tokens();
    result_.stats.speculated_tokens = finished.speculated_tokens();
    result_.stats.accepted_speculated_tokens = finished.accepted_speculated_tokens();
    return {};
  }

  void SetError(const Status& error) {
    result_.reason = error.code() == StatusCode::kCancelled ? FinishReason::kCancelled : FinishReason::kError;
    result_.error = error;
  }

  // Without a reason it comes from gRPC itself: the worker is gone.
  Status Explain(const Status& status) const {
    const bool is_of_grpc = status.code() == StatusCode::kUnavailable && Reason(status).empty();
    return is_of_grpc ? NoneAnswers("worker", address_, status) : status;
  }

  const std::string address_;
  const v1::ExecuteRequest request_;
  const uint32_t vocab_size_;
  const std::shared_ptr<TokenSink> sink_;
  grpc::ClientContext context_;
  v1::ExecuteEvent event_;
  uint32_t tokens_ = 0;
  Status broken_;  // what was wrong with an event
  bool is_finished_ = false;
  SequenceResult result_;
  std::shared_ptr<SequenceCall> self_;  // until OnDone
};

class Call : public AnswerCall {
 public:
  Call(std::shared_ptr<SequenceAnswers> answers, std::vector<std::shared_ptr<SequenceCall>> sequences)
      : answers_(std::move(answers)), sequences_(std::move(sequences)) {}
  void Cancel() override {
    answers_->Close();
    for (const auto& sequence : sequences_) sequence->Cancel();
  }

 private:
  const std::shared_ptr<SequenceAnswers> answers_;
  const std::vector<std::shared_ptr<SequenceCall>> sequences_;
};

}  // namespace

StatusOr<std::unique_ptr<WorkerModel>> WorkerModel::Open(const std::string& address,
                                                         const ChannelSecurity& security) {
  std::unique_ptr<WorkerModel> model(
      new WorkerModel(address, v1::Worker::NewStub(MakeKeptChannel(address, security))));
  ASSIGN_OR_RETURN(model->description_, DescribeWorker(*model->stub_, address));
  const v1::WorkerDescription& worker = model->description_;
  if (worker.protocol() != v1::WORKER_PROTOCOL_CURRENT)
    return FailedPrecondition("the worker at ", address, " (version ", worker.version(), ") has protocol ",
                              worker.protocol(), ", this program ",
                              static_cast<int>(v1::WORKER_PROTOCOL_CURRENT));
  ASSIGN_OR_RETURN(model->text_, FetchText(*model->stub_, address, worker.text_digest()));
  if (Digest(model->text_).Hex() != worker.text_digest())
    return DataLoss(address, ": its text assets are not those of its digest");
  return model;
}

std::unique_ptr<AnswerCall> WorkerModel::Start(const v1::GenerateRequest& request, OnAnswerPiece on_piece) {
  const auto answers =
      std::make_shared<SequenceAnswers>(text_.tokenizer, request, description_.model(), std::move(on_piece));
  std::vector<std::shared_ptr<SequenceCall>> sequences;
  const auto run = [&](const SequenceSpec& spec, std::shared_ptr<TokenSink> sink) {
    if (sink->is_closed()) return Status();  // one before has failed
    v1::ExecuteRequest message = ToProto(spec);
    message.set_instance(description_.instance());
    sequences.push_back(SequenceCall::Start(*stub_, address_, std::move(message), description_.vocab_size(),
                                            std::move(sink)));
    return Status();
  };
  const auto first = FirstSequence(request, text_, description_.context_length());
  const Status status = first.ok() ? answers->Start(*first, run) : first.status();
  if (!status.ok()) answers->Fail(status);
  return std::make_unique<Call>(answers, std::move(sequences));
}

StatusOr<v1::ListModelsResponse> WorkerModel::ListModels() {
  v1::ListModelsResponse response;
  v1::Model& model = *response.add_models();
  model.set_id(description_.model());
  model.set_ready(true);
  model.set_context_length(description_.context_length());
  model.set_parameters(description_.parameters());
  return response;
}

std::optional<ModelFacts> WorkerModel::Facts() const {
  return ModelFacts{.is_in_process = false,
                    .name = description_.model(),
                    .model_digest = description_.model_digest(),
                    .text_digest = description_.text_digest(),
                    .instance = description_.instance(),
                    .device = description_.device(),
                    .kv_dtype = description_.kv_dtype(),
                    .weight_dtype = description_.weight_dtype(),
                    .parameters = description_.parameters()};
}

}  // namespace terrace
