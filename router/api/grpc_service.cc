#include "router/api/grpc_service.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <list>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/grpc_status.h"
#include "grpcpp/alarm.h"
#include "grpcpp/grpcpp.h"
#include "proto/terrace/v1/inference.grpc.pb.h"
#include "router/api/grpc_convert.h"
#include "router/dispatch/late_cancel.h"
#include "router/request/param.h"

namespace terrace {
namespace {

constexpr size_t kMessageTokens = 1024;            // at most, in one message
constexpr char kParamTrailer[] = "terrace-param";  // the field at fault

void SetTrailers(grpc::ServerContextBase& context, const Status& status) {
  SetReasonTrailer(context, status);
  if (const std::string param = Param(status); !param.empty())
    context.AddTrailingMetadata(kParamTrailer, param);
}

// A client resets a call whose deadline is over too, by its own clock: a little before ours.
constexpr auto kDeadlineSlack = std::chrono::milliseconds(100);

// Of a call that was cancelled: the client did it, or is gone.
bool IsBeforeDeadline(const grpc::CallbackServerContext& context) {
  return context.deadline() - std::chrono::system_clock::now() > kDeadlineSlack;
}

// One Generate call: the sink of its answers and the writer of its stream. It is full while more than
// stream_buffer_bytes wait to be written (beside them gRPC holds up to 64 KiB that others were waiting
// behind); when nothing could be written for slow_reader_seconds then, or behind the end, it is cut off.
// Shared by the dispatcher and by gRPC, which holds it (self_) until OnDone; OnDone comes only after
// OnFinish.
class GenerateCall : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                     public AnswerSink,
                     public std::enable_shared_from_this<GenerateCall> {
 public:
  GenerateCall(grpc::CallbackServerContext& context, const ApiOptions& options, ResetLimit& resets)
      : context_(context),
        resets_(resets),
        buffer_bytes_(options.stream_buffer_bytes),
        slow_reader_seconds_(options.slow_reader_seconds),
        shows_replicas_(options.shows_replicas()) {}

  static std::shared_ptr<GenerateCall> Make(grpc::CallbackServerContext& context, const ApiOptions& options,
                                            ResetLimit& resets) {
    auto call = std::make_shared<GenerateCall>(context, options, resets);
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
    for (std::span<const AnswerToken> rest = tokens; !rest.empty();) {
      const size_t count = std::min(rest.size(), kMessageTokens);
      v1::GenerateResponse response = NewResponse();
      PromptTokensToProto(rest.first(count), response);
      Enqueue(std::move(response));
      rest = rest.subspan(count);
    }
  }

  void OnPiece(AnswerPiece piece) override {
    while (piece.tokens.size() > kMessageTokens) {  // one that was held back becomes several messages
      AnswerPiece part{.choice = piece.choice,
                       .text = std::exchange(piece.text, {}),
                       .tool_calls = std::exchange(piece.tool_calls, {})};
      const auto end = piece.tokens.begin() + kMessageTokens;
      std::move(piece.tokens.begin(), end, std::back_inserter(part.tokens));
      piece.tokens.erase(piece.tokens.begin(), end);
      EnqueuePiece(part);
    }
    EnqueuePiece(piece);
  }

  void OnChoiceEnd(uint32_t choice, const AnswerSummary& summary) override {
    v1::GenerateResponse last = NewResponse();
    last.set_choice(choice);
    SummaryToProto(summary, shows_replicas_, *last.mutable_finished());
    Enqueue(std::move(last));
  }

  void OnFinish(StatusOr<AnswerSummary> total) override {
    {
      std::lock_guard lock(mutex_);
      end_ = total.status();
      if ((is_writing_ || !unsent_.empty()) && slow_timer_ == nullptr) SetSlowTimer();
    }
    WriteNext();
  }

  bool is_closed() const override { return is_closed_; }
  bool is_too_slow() const override { return is_too_slow_; }
  bool is_full() const override { return is_full_; }
  void OnRoom(std::function<void()> on_room) override { on_room_ = std::move(on_room); }

  // gRPC's reactions.
  void OnWriteDone(bool ok) override {
    if (!ok) is_closed_ = true;
    bool has_room = false;
    {
      std::lock_guard lock(mutex_);
      is_writing_ = false;
      ++written_;
      unsent_bytes_ -= current_.ByteSizeLong();
      has_room = is_full_ && unsent_bytes_ <= buffer_bytes_ / 2;
      if (has_room) is_full_ = false;
    }
    const auto keep = shared_from_this();
    WriteNext();
    if (has_room && on_room_) on_room_();
  }
  void OnCancel() override {
    is_closed_ = true;
    if (IsUnanswered() && IsBeforeDeadline(context_)) resets_.OnReset(context_.peer(), begin_);
    cancel_.Cancel();
  }
  void OnDone() override {
    {
      std::lock_guard lock(mutex_);
      slow_timer_.reset();
    }
    const auto last = std::move(self_);  // may delete this
  }

 private:
  bool IsUnanswered() {
    std::lock_guard lock(mutex_);
    return written_ == 0 && !is_writing_ && unsent_.empty() && !end_.has_value();
  }

  v1::GenerateResponse NewResponse() const {
    v1::GenerateResponse response;
    response.set_request_id(request_id_);
    return response;
  }

  void EnqueuePiece(const AnswerPiece& piece) {
    v1::GenerateResponse response = NewResponse();
    PieceToProto(piece, with_logprobs_, response);
    Enqueue(std::move(response));
  }

  void Enqueue(v1::GenerateResponse response) {
    const size_t bytes = response.ByteSizeLong();
    {
      std::lock_guard lock(mutex_);
      if (is_closed_) return;
      unsent_bytes_ += bytes;
      unsent_.push_back(std::move(response));
      if (unsent_bytes_ > buffer_bytes_ && !is_full_.exchange(true) && slow_timer_ == nullptr) SetSlowTimer();
    }
    WriteNext();
  }

  // With the lock.
  void SetSlowTimer() {
    const auto wait = std::chrono::duration_cast<std::chrono::system_clock::duration>(
        std::chrono::duration<double>(slow_reader_seconds_));
    slow_timer_ = std::make_unique<grpc::Alarm>();
    slow_timer_->Set(std::chrono::system_clock::now() + wait,
                     [self = shared_from_this(), written = written_](bool is_due) {
                       if (is_due) self->OnSlowTimer(written);
                     });
  }

  void OnSlowTimer(uint64_t written_then) {
    {
      std::lock_guard lock(mutex_);
      slow_timer_.reset();
      if ((!is_full_ && !end_.has_value()) || is_finished_) return;
      if (written_ != written_then) return SetSlowTimer();
      is_cutting_off_ = true;  // until then the context lives: the call is not finished
    }
    is_too_slow_ = is_closed_ = true;
    context_.TryCancel();
    cancel_.Cancel();
    {
      std::lock_guard lock(mutex_);
      is_cutting_off_ = false;
    }
    WriteNext();
  }

  // With the lock.
  void DropUnsent() {
    unsent_.clear();
    unsent_bytes_ = 0;
    is_full_ = false;
  }

  // Starts the next write, or ends the call when all is said. At most one write is under way.
  void WriteNext() {
    std::optional<Status> end;
    grpc::WriteOptions options;
    {
      std::lock_guard lock(mutex_);
      if (is_writing_ || is_finished_ || is_cutting_off_) return;
      if (is_closed_) DropUnsent();
      if (!unsent_.empty()) {
        is_writing_ = true;
        current_ = std::move(unsent_.front());
        unsent_.pop_front();
        if (!unsent_.empty()) options.set_buffer_hint();  // it goes out with the next one
      } else if (end_.has_value()) {
        is_finished_ = true;
        end = *end_;
      } else {
        return;
      }
    }
    if (!end.has_value()) return StartWrite(&current_, options);
    SetTrailers(context_, *end);
    Finish(ToGrpcStatus(*end));
  }

  grpc::CallbackServerContext& context_;  // gRPC's, until OnDone
  ResetLimit& resets_;
  const MonoTime begin_ = resets_.Now();
  std::string request_id_;
  bool with_logprobs_ = false;
  LateCancel cancel_;
  const size_t buffer_bytes_;
  const double slow_reader_seconds_;
  const bool shows_replicas_;
  std::function<void()> on_room_;  // set before the first piece
  std::atomic<bool> is_closed_ = false, is_too_slow_ = false;
  std::atomic<bool> is_full_ = false;  // changed with the lock
  std::mutex mutex_;
  std::list<v1::GenerateResponse> unsent_;   // GUARDED_BY(mutex_): mostly empty; a deque has half a KiB then
  size_t unsent_bytes_ = 0;                  // GUARDED_BY(mutex_): with current_ while it is written
  uint64_t written_ = 0;                     // GUARDED_BY(mutex_): messages
  std::unique_ptr<grpc::Alarm> slow_timer_;  // GUARDED_BY(mutex_)
  bool is_cutting_off_ = false;              // GUARDED_BY(mutex_)
  v1::GenerateResponse current_;             // being written
  bool is_writing_ = false;                  // GUARDED_BY(mutex_)
  bool is_finished_ = false;                 // GUARDED_BY(mutex_)
  std::optional<Status> end_;                // GUARDED_BY(mutex_)
  std::shared_ptr<GenerateCall> self_;
};

// One Score call; gRPC's until OnDone, which comes only after Finish.
class ScoreCall : public grpc::ServerUnaryReactor {
 public:
  ScoreCall(grpc::CallbackServerContext& context, v1::ScoreResponse& response, ResetLimit& resets)
      : context_(context), response_(response), resets_(resets) {}

  void Start(Dispatcher& dispatcher, RequestPtr request) {
    const auto cancel = cancel_;  // this may be deleted before Set
    cancel->Set(dispatcher.Score(std::move(request), [this](StatusOr<ScoreAnswer> answer) {
      if (answer.ok()) ScoreToProto(*answer, response_);
      End(answer.status());
    }));
  }

  void End(const Status& status) {
    has_ended_ = true;
    SetTrailers(context_, status);
    Finish(ToGrpcStatus(status));
  }

  void OnCancel() override {
    if (!has_ended_ && IsBeforeDeadline(context_)) resets_.OnReset(context_.peer(), begin_);
    cancel_->Cancel();
  }
  void OnDone() override { delete this; }

 private:
  grpc::CallbackServerContext& context_;
  v1::ScoreResponse& response_;
  ResetLimit& resets_;
  const MonoTime begin_ = resets_.Now();
  std::atomic<bool> has_ended_ = false;
  const std::shared_ptr<LateCancel> cancel_ = std::make_shared<LateCancel>();
};

class InferenceService : public v1::Inference::CallbackService {
 public:
  InferenceService(Dispatcher& dispatcher, ApiOptionsSource options, const Clock& clock, ResetLimit& resets)
      : dispatcher_(dispatcher),
        options_(std::move(options)),
        clock_(clock),
        resets_(resets),
        ids_(options_()->seed + 1) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest* message) override {
    const auto call = GenerateCall::Make(*context, *options_(), resets_);
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
    auto* call = new ScoreCall(*context, *response, resets_);
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
    const auto tenant = TenantOf(*context);
    if (!tenant.ok()) RecordRefused(*context, {.request_id = ids_.Next(), .status = tenant.status()});
    if (tenant.ok()) {
      for (const ModelInfo& model : dispatcher_.ListModels(**tenant)) {
        ModelToProto(model, *response->add_models());
      }
    }
    auto* call = context->DefaultReactor();
    End(*context, *call, tenant.status());
    return call;
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* message,
                                     v1::TokenizeResponse* response) override {
    const auto request = MakeRequest(*context, ids_.Next(), FieldsFromProto(*message));
    auto* call = context->DefaultReactor();
    const auto answer = [context, call, response](const StatusOr<TokenizedInput>& input) {
      if (input.ok()) TokenizedToProto(*input, *response);
      End(*context, *call, input.status());
    };
    if (request.ok()) {
      dispatcher_.Tokenize(*request, message->with_bytes(), answer);
    } else {
      answer(request.status());
    }
    return call;
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* message,
                                       v1::DetokenizeResponse* response) override {
    const auto request = MakeRequest(*context, ids_.Next(), FieldsFromProto(*message));
    auto* call = context->DefaultReactor();
    const auto answer = [context, call, response](const StatusOr<std::string>& text) {
      if (text.ok()) response->set_text(*text);
      End(*context, *call, text.status());
    };
    if (request.ok()) {
      dispatcher_.Detokenize(*request, answer);
    } else {
      answer(request.status());
    }
    return call;
  }

 private:
  StatusOr<RequestPtr> MakeRequest(const grpc::CallbackServerContext& context, const std::string& id,
                                   RequestFields fields) {
    const ApiKind api = fields.api;
    std::string peer = context.peer();
    const Status limited = resets_.is_empty() ? Status() : resets_.Check(peer);
    auto tenant = limited.ok() ? TenantOf(context) : limited;
    if (!tenant.ok()) {
      // The id given may be anything.
      RecordRefused(context, {.api = api, .request_id = ids_.Next(), .status = tenant.status()});
      return tenant.status();
    }
    fields.tenant = *tenant;
    fields.request_id = id;
    fields.trace = TraceOf(context);
    fields.peer = std::move(peer);
    fields.arrival = clock_.Now();
    fields.deadline = DeadlineOf(*options_(), fields.arrival, TimeoutOf(context));
    auto request = Request::Make(std::move(fields));
    if (!request.ok()) {
      RecordRefused(context, {.api = api,
                              .request_id = id.substr(0, Request::kMaxRequestIdBytes),
                              .tenant = *tenant,
                              .status = request.status()});
    }
    return request;
  }

  TraceContext TraceOf(const grpc::CallbackServerContext& context) {
    return ids_.NextTrace(MetadataOf(context, "traceparent"), MetadataOf(context, "tracestate"));
  }

  void RecordRefused(const grpc::CallbackServerContext& context, RefusedRequest refused) {
    refused.trace = TraceOf(context);
    refused.peer = context.peer();
    dispatcher_.RecordRefused(refused);
  }

  StatusOr<TenantPtr> TenantOf(const grpc::CallbackServerContext& context) const {
    return AuthenticateCaller(*options_(), MetadataOf(context, "authorization"));
  }

  // "" when it is absent or was given twice.
  static std::string_view MetadataOf(const grpc::CallbackServerContext& context, const char* name) {
    const auto [first, end] = context.client_metadata().equal_range(name);
    if (first == end || std::next(first) != end) return {};
    return {first->second.data(), first->second.size()};
  }

  // Afterwards both may be gone.
  static void End(grpc::CallbackServerContext& context, grpc::ServerUnaryReactor& call,
                  const Status& status) {
    SetTrailers(context, status);
    call.Finish(ToGrpcStatus(status));
  }

  // Seconds the client gave the call; negative when it set no deadline.
  static double TimeoutOf(const grpc::CallbackServerContext& context) {
    const auto deadline = context.deadline();
    if (deadline == std::chrono::system_clock::time_point::max()) return -1;
    const std::chrono::duration<double> left = deadline - std::chrono::system_clock::now();
    return std::max(left.count(), 0.0);
  }

  Dispatcher& dispatcher_;
  const ApiOptionsSource options_;
  const Clock& clock_;
  ResetLimit& resets_;
  RequestIds ids_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeInferenceService(Dispatcher& dispatcher, ApiOptionsSource options,
                                                    const Clock& clock, ResetLimit& resets) {
  return std::make_unique<InferenceService>(dispatcher, std::move(options), clock, resets);
}

}  // namespace terrace
