#include "router/api/grpc_service.h"

#include <algorithm>
#include <deque>
#include <iterator>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/grpc_status.h"
#include "grpcpp/grpcpp.h"
#include "proto/terrace/v1/inference.grpc.pb.h"
#include "router/api/grpc_convert.h"

namespace terrace {
namespace {

constexpr size_t kMessageTokens = 1024;    // at most, in one message
constexpr size_t kMaxUnsentPieces = 4096;  // a client that is further behind is not reading

// What ends a call early, known only after the call has begun. Thread-safe.
class LateCancel {
 public:
  void Set(Dispatcher::CancelCall cancel) {
    {
      std::lock_guard lock(mutex_);
      cancel_ = cancel;
      if (!is_cancelled_) return;
    }
    cancel();
  }
  void Cancel() {
    Dispatcher::CancelCall cancel;
    {
      std::lock_guard lock(mutex_);
      is_cancelled_ = true;
      cancel = cancel_;
    }
    if (cancel) cancel();
  }

 private:
  std::mutex mutex_;
  Dispatcher::CancelCall cancel_;  // GUARDED_BY(mutex_)
  bool is_cancelled_ = false;      // GUARDED_BY(mutex_)
};

// One Generate call: the sink of its answers and the writer of its stream. Shared by the dispatcher and by
// gRPC, which holds it (self_) until OnDone; OnDone comes only after OnFinish.
class GenerateCall : public grpc::ServerWriteReactor<v1::GenerateResponse>, public AnswerSink {
 public:
  explicit GenerateCall(grpc::CallbackServerContext& context) : context_(context) {}

  static std::shared_ptr<GenerateCall> Make(grpc::CallbackServerContext& context) {
    auto call = std::make_shared<GenerateCall>(context);
    call->self_ = call;
    return call;
  }

  void Start(Dispatcher& dispatcher, const RequestPtr& request) {
    request_id_ = request->request_id();
    with_logprobs_ = request->logprobs();
    const auto keep = self_;  // the answer may be over before Set
    cancel_.Set(dispatcher.Generate(request, keep));
  }

  // AnswerSink.
  void OnPromptTokens(std::vector<AnswerToken> tokens) override {
    std::vector<v1::GenerateResponse> responses;
    for (std::span<const AnswerToken> rest = tokens; !rest.empty();) {
      const size_t count = std::min(rest.size(), kMessageTokens);
      PromptTokensToProto(rest.first(count), NewResponse(responses));
      rest = rest.subspan(count);
    }
    Enqueue(std::move(responses));
  }

  void OnPiece(AnswerPiece piece) override {
    std::vector<v1::GenerateResponse> responses;
    do {  // a large piece (an answer that was held back) becomes several messages
      AnswerPiece part{.choice = piece.choice, .text = std::exchange(piece.text, {})};
      const auto end = piece.tokens.begin() + std::min(piece.tokens.size(), kMessageTokens);
      std::move(piece.tokens.begin(), end, std::back_inserter(part.tokens));
      piece.tokens.erase(piece.tokens.begin(), end);
      PieceToProto(part, with_logprobs_, NewResponse(responses));
    } while (!piece.empty());
    Enqueue(std::move(responses));
  }

  void OnChoiceEnd(uint32_t choice, const AnswerSummary& summary) override {
    std::vector<v1::GenerateResponse> responses;
    v1::GenerateResponse& last = NewResponse(responses);
    last.set_choice(choice);
    SummaryToProto(summary, *last.mutable_finished());
    Enqueue(std::move(responses));
  }

  void OnFinish(StatusOr<AnswerSummary> total) override {
    {
      std::lock_guard lock(mutex_);
      end_ = total.status();
    }
    WriteNext();
  }

  bool is_closed() const override { return is_closed_; }

  // gRPC's reactions.
  void OnWriteDone(bool ok) override {
    if (!ok) is_closed_ = true;
    {
      std::lock_guard lock(mutex_);
      is_writing_ = false;
    }
    WriteNext();
  }
  void OnCancel() override {
    is_closed_ = true;
    cancel_.Cancel();
  }
  void OnDone() override {
    const auto last = std::move(self_);  // may delete this
  }

 private:
  v1::GenerateResponse& NewResponse(std::vector<v1::GenerateResponse>& responses) const {
    responses.emplace_back().set_request_id(request_id_);
    return responses.back();
  }

  void Enqueue(std::vector<v1::GenerateResponse> responses) {
    {
      std::lock_guard lock(mutex_);
      if (!is_closed_ && unsent_.size() >= kMaxUnsentPieces) {
        is_closed_ = true;
        has_overflowed_ = true;
      }
      if (is_closed_) return;
      std::move(responses.begin(), responses.end(), std::back_inserter(unsent_));
    }
    WriteNext();
  }

  // Starts the next write, or ends the call when all is said. At most one write is under way.
  void WriteNext() {
    std::optional<Status> end;
    {
      std::lock_guard lock(mutex_);
      if (is_writing_ || is_finished_) return;
      if (is_closed_) unsent_.clear();
      if (!unsent_.empty()) {
        is_writing_ = true;
        current_ = std::move(unsent_.front());
        unsent_.pop_front();
      } else if (end_.has_value()) {
        is_finished_ = true;
        end = has_overflowed_ ? WithReason(ResourceExhausted("the client does not read: ", kMaxUnsentPieces,
                                                             " messages wait"),
                                           "slow_reader")
                              : *end_;
      } else {
        return;
      }
    }
    if (!end.has_value()) return StartWrite(&current_);
    SetReasonTrailer(context_, *end);
    Finish(ToGrpcStatus(*end));
  }

  grpc::CallbackServerContext& context_;  // gRPC's, until OnDone
  std::string request_id_;
  bool with_logprobs_ = false;
  LateCancel cancel_;
  std::atomic<bool> is_closed_ = false;
  std::mutex mutex_;
  std::deque<v1::GenerateResponse> unsent_;  // GUARDED_BY(mutex_)
  v1::GenerateResponse current_;             // being written
  bool is_writing_ = false;                  // GUARDED_BY(mutex_)
  bool is_finished_ = false;                 // GUARDED_BY(mutex_)
  bool has_overflowed_ = false;              // GUARDED_BY(mutex_): what was dropped must not look like an end
  std::optional<Status> end_;                // GUARDED_BY(mutex_)
  std::shared_ptr<GenerateCall> self_;
};

// One Score call; gRPC's until OnDone, which comes only after Finish.
class ScoreCall : public grpc::ServerUnaryReactor {
 public:
  explicit ScoreCall(grpc::CallbackServerContext& context, v1::ScoreResponse& response)
      : context_(context), response_(response) {}

  void Start(Dispatcher& dispatcher, RequestPtr request) {
    const auto cancel = cancel_;  // this may be deleted before Set
    cancel->Set(dispatcher.Score(std::move(request), [this](StatusOr<ScoreAnswer> answer) {
      if (answer.ok()) ScoreToProto(*answer, response_);
      End(answer.status());
    }));
  }

  void End(const Status& status) {
    SetReasonTrailer(context_, status);
    Finish(ToGrpcStatus(status));
  }

  void OnCancel() override { cancel_->Cancel(); }
  void OnDone() override { delete this; }

 private:
  grpc::CallbackServerContext& context_;
  v1::ScoreResponse& response_;
  const std::shared_ptr<LateCancel> cancel_ = std::make_shared<LateCancel>();
};

class InferenceService : public v1::Inference::CallbackService {
 public:
  InferenceService(Dispatcher& dispatcher, const ApiOptions& options, const Clock& clock)
      : dispatcher_(dispatcher), options_(options), clock_(clock), ids_(options.seed + 1) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest* message) override {
    const auto call = GenerateCall::Make(*context);
    const std::string id = message->request_id().empty() ? ids_.Next() : message->request_id();
    const auto request = MakeRequest(*context, id, FieldsFromProto(*message));
    if (request.ok()) {
      call->Start(dispatcher_, *request);
    } else {
      call->OnFinish(request.status());
    }
    return call.get();
  }

  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* message,
                                  v1::ScoreResponse* response) override {
    auto* call = new ScoreCall(*context, *response);
    const auto request = MakeRequest(*context, ids_.Next(), FieldsFromProto(*message));
    if (request.ok()) {
      call->Start(dispatcher_, *request);
    } else {
      call->End(request.status());
    }
    return call;
  }

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest*,
                                       v1::ListModelsResponse* response) override {
    for (const ModelInfo& model : dispatcher_.ListModels()) ModelToProto(model, *response->add_models());
    auto* call = context->DefaultReactor();
    call->Finish(grpc::Status::OK);
    return call;
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* message,
                                     v1::TokenizeResponse* response) override {
    RequestFields fields = FieldsFromProto(*message);
    fields.request_id = ids_.Next();
    const auto request = Request::Make(std::move(fields));
    const auto tokens = request.ok() ? dispatcher_.Tokenize(**request) : request.status();
    if (tokens.ok()) response->mutable_ids()->Add(tokens->begin(), tokens->end());
    auto* call = context->DefaultReactor();
    SetReasonTrailer(*context, tokens.status());
    call->Finish(ToGrpcStatus(tokens.status()));
    return call;
  }

 private:
  StatusOr<RequestPtr> MakeRequest(const grpc::CallbackServerContext& context, const std::string& id,
                                   RequestFields fields) {
    const ApiKind api = fields.api;
    fields.request_id = id;
    fields.arrival = clock_.Now();
    fields.deadline = DeadlineOf(options_, fields.arrival, TimeoutOf(context));
    auto request = Request::Make(std::move(fields));
    if (!request.ok()) dispatcher_.RecordRefused(api, id, request.status());
    return request;
  }

  // Seconds the client gave the call; negative when it set no deadline.
  static double TimeoutOf(const grpc::CallbackServerContext& context) {
    const auto deadline = context.deadline();
    if (deadline == std::chrono::system_clock::time_point::max()) return -1;
    const std::chrono::duration<double> left = deadline - std::chrono::system_clock::now();
    return std::max(left.count(), 0.0);
  }

  Dispatcher& dispatcher_;
  const ApiOptions options_;
  const Clock& clock_;
  RequestIds ids_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeInferenceService(Dispatcher& dispatcher, const ApiOptions& options,
                                                    const Clock& clock) {
  return std::make_unique<InferenceService>(dispatcher, options, clock);
}

}  // namespace terrace
