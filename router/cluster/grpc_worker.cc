#include "router/cluster/grpc_worker.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "base/grpc_channel.h"
#include "base/grpc_status.h"
#include "grpcpp/alarm.h"
#include "grpcpp/grpcpp.h"
#include "proto/terrace/v1/worker.grpc.pb.h"

namespace terrace {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;  // the keys of 8 million KV blocks
constexpr size_t kMaxTextBytes = size_t{256} << 20;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address, const WorkerChannelOptions& options) {
  return MakePeerChannel(address, {.credentials = options.credentials,
                                   .server_name = options.server_name,
                                   .max_receive_bytes = kMaxMessageBytes});
}

// gRPC 1.51 joins its callback threads where the last channel with callback calls is dropped. A call may
// outlive its connection, and then that place is a callback thread, which would wait for itself. One channel
// that is never dropped keeps the threads until the process ends.
void KeepCallbackThreads() {
  struct Anchor {
    std::unique_ptr<v1::Worker::Stub> stub = v1::Worker::NewStub(MakeChannel("127.0.0.1:1", {}));
    grpc::ClientContext context;
    v1::DescribeRequest request;
    v1::WorkerDescription response;
  };
  static const Anchor* const anchor = [] {
    auto* made = new Anchor();
    made->context.set_deadline(std::chrono::system_clock::now());  // the call is over before it connects
    made->stub->async()->Describe(&made->context, &made->request, &made->response,
                                  [](const grpc::Status&) {});
    return made;
  }();
  static_cast<void>(anchor);
}

// gRPC deadlines are wall-clock times.
std::chrono::system_clock::time_point WallDeadline(Duration remaining) {
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(std::max(remaining, Duration(0)));
}

// A reader that may be full, and whose call then waits, until its deadline at most: gRPC tells its end to who
// reads. Shared by the call and its handle.
class ReadPause : public std::enable_shared_from_this<ReadPause> {
 public:
  // A reader that is gone is not full.
  ReadPause(std::weak_ptr<const ExecuteEvents> reader, std::chrono::system_clock::time_point deadline)
      : reader_(std::move(reader)), deadline_(deadline) {}

  // `read_on` is called only while the call lives: between Wait and its end.
  void SetReadOn(std::function<void()> read_on) { read_on_ = std::move(read_on); }
  bool is_full() const {
    const auto reader = is_over_ ? nullptr : reader_.lock();
    return reader != nullptr && reader->is_full();
  }

  // With a hold on the call: gives the right to read on away, unless that is to be done at once.
  void Wait() {
    {
      std::lock_guard lock(mutex_);
      alarm_ = std::make_unique<grpc::Alarm>();
      alarm_->Set(deadline_, [self = shared_from_this()](bool is_due) {
        if (is_due) self->End();
      });
    }
    is_waiting_ = true;
    Resume();  // what made room may have come before, and found nobody waiting
  }
  void Resume() {
    if (is_full() || !is_waiting_.exchange(false)) return;
    std::unique_ptr<grpc::Alarm> done;  // goes without the lock
    {
      std::lock_guard lock(mutex_);
      done = std::move(alarm_);
    }
    read_on_();
  }
  // Reads on whatever is full.
  void End() {
    is_over_ = true;
    Resume();
  }

 private:
  const std::weak_ptr<const ExecuteEvents> reader_;
  const std::chrono::system_clock::time_point deadline_;
  std::function<void()> read_on_;         // set before the first Wait
  std::atomic<bool> is_waiting_ = false;  // who clears it calls read_on_, once
  std::atomic<bool> is_over_ = false;
  std::mutex mutex_;
  std::unique_ptr<grpc::Alarm> alarm_;  // GUARDED_BY(mutex_): while it waits
};

// gRPC ends the process at a value that is not printable ASCII: one is left out, as an empty one is.
void AddMetadata(grpc::ClientContext& context, const char* name, const std::string& value) {
  const bool is_legal = std::ranges::all_of(value, [](char c) { return c >= ' ' && c <= '~'; });
  if (is_legal && !value.empty()) context.AddMetadata(name, value);
}

class ContextHandle : public CallHandle {
 public:
  explicit ContextHandle(std::shared_ptr<grpc::ClientContext> context) : context_(std::move(context)) {}
  void Cancel() override { context_->TryCancel(); }

 private:
  const std::shared_ptr<grpc::ClientContext> context_;
};

// Of a call that may pause.
class PausableHandle : public CallHandle {
 public:
  PausableHandle(std::shared_ptr<grpc::ClientContext> context, std::shared_ptr<ReadPause> pause)
      : context_(std::move(context)), pause_(std::move(pause)) {}
  void Cancel() override {
    context_->TryCancel();
    pause_->End();  // the call's end is told by the next read
  }
  void Resume() override { pause_->Resume(); }

 private:
  const std::shared_ptr<grpc::ClientContext> context_;
  const std::shared_ptr<ReadPause> pause_;
};

// The Execute calls of one connection that are under way. Thread-safe.
class RunningCalls {
 public:
  uint64_t Add(std::shared_ptr<CallHandle> handle) {
    std::lock_guard lock(mutex_);
    calls_[++last_id_].handle = std::move(handle);
    return last_id_;
  }
  // The call is over. Why EndAll had ended it, or OK.
  Status Remove(uint64_t id) {
    std::lock_guard lock(mutex_);
    return calls_.extract(id).mapped().why;
  }
  void EndAll(const Status& why) {
    std::vector<std::shared_ptr<CallHandle>> ended;
    {
      std::lock_guard lock(mutex_);
      for (auto& [id, call] : calls_) {
        if (!call.why.ok()) continue;
        call.why = why;
        ended.push_back(call.handle);
      }
    }
    for (const auto& handle : ended) handle->Cancel();
  }

 private:
  struct Call {
    std::shared_ptr<CallHandle> handle = {};
    Status why = {};
  };
  std::mutex mutex_;
  std::map<uint64_t, Call> calls_;  // GUARDED_BY(mutex_)
  uint64_t last_id_ = 0;            // GUARDED_BY(mutex_)
};

// A server-streaming call that owns itself until OnDone. `on_message` judges each message: an error ends the
// call, and is what `on_done` gets. With a `pause` it reads on only while that is not full.
template <typename Message>
class StreamCall : public grpc::ClientReadReactor<Message> {
 public:
  using OnMessage = std::function<Status(Message&)>;
  using OnEnd = std::function<void(Status)>;

  StreamCall(std::shared_ptr<grpc::ClientContext> context, OnMessage on_message, OnEnd on_end,
             std::shared_ptr<ReadPause> pause = nullptr)
      : context_(std::move(context)),
        on_message_(std::move(on_message)),
        on_end_(std::move(on_end)),
        pause_(std::move(pause)) {
    if (pause_ == nullptr) return;
    pause_->SetReadOn([this] {
      this->StartRead(&message_);
      this->RemoveHold();
    });
  }

  void Start() {
    this->StartRead(&message_);
    this->StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    error_ = on_message_(message_);
    message_.Clear();  // the next one may be long in coming
    if (!error_.ok()) {
      context_->TryCancel();
      return;
    }
    if (pause_ == nullptr || !pause_->is_full()) return this->StartRead(&message_);
    this->AddHold();            // gRPC does not end a call that may start a read outside of its reactions
    const auto pause = pause_;  // this may be gone before Wait returns
    pause->Wait();
  }

  void OnDone(const grpc::Status& status) override {
    on_end_(error_.ok() ? FromGrpcStatus(status, *context_) : error_);
    delete this;
  }

 private:
  const std::shared_ptr<grpc::ClientContext> context_;
  const OnMessage on_message_;
  const OnEnd on_end_;
  const std::shared_ptr<ReadPause> pause_;  // may be null
  Message message_;
  Status error_;
};

Status ProtocolError(const std::string& what) {
  return WithReason(Internal("the worker broke the protocol: ", what), "worker_protocol");
}

Status CheckProtocol(const v1::WorkerDescription& description) {
  if (description.protocol() == v1::WORKER_PROTOCOL_CURRENT) return {};
  return WithReason(
      FailedPrecondition("the worker (", description.version(), ") speaks protocol ", description.protocol(),
                         ", this router ", static_cast<int>(v1::WORKER_PROTOCOL_CURRENT)),
      kMismatchReason);
}

v1::ExecuteRequest ToProto(const ExecuteSpec& spec) {
  v1::ExecuteRequest out;
  out.set_request_id(spec.request_id);
  out.set_instance(spec.instance);
  out.mutable_prompt_tokens()->Add(spec.prompt->begin(), spec.prompt->end());
  out.mutable_resume_tokens()->Add(spec.resume.begin(), spec.resume.end());
  out.mutable_draft_tokens()->Add(spec.draft.begin(), spec.draft.end());
  const Sampling& sampling = spec.sampling;
  v1::SamplingParams& params = *out.mutable_sampling();
  params.set_temperature(sampling.temperature);
  params.set_top_k(sampling.top_k);
  params.set_top_p(sampling.top_p);
  params.set_min_p(sampling.min_p);
  params.set_repetition_penalty(sampling.repetition_penalty);
  params.set_presence_penalty(sampling.presence_penalty);
  params.set_frequency_penalty(sampling.frequency_penalty);
  for (const auto& [token, bias] : sampling.logit_bias) (*params.mutable_logit_bias())[token] = bias;
  if (sampling.seed.has_value()) params.set_seed(*sampling.seed);
  out.set_max_tokens(spec.max_tokens);
  out.mutable_stop_tokens()->Add(spec.stop_tokens.begin(), spec.stop_tokens.end());
  out.set_ignore_eos(spec.ignore_eos);
  out.set_top_logprobs(spec.top_logprobs);
  out.set_score_prompt(spec.score_prompt);
  out.set_signals(spec.signals);
  if (spec.speculation_max_tokens.has_value())
    out.mutable_speculation()->set_max_tokens(*spec.speculation_max_tokens);
  out.set_priority(spec.priority);
  out.set_cache_salt(spec.cache_salt);
  return out;
}

std::vector<WorkerToken> FromProto(const google::protobuf::RepeatedPtrField<v1::GeneratedToken>& tokens) {
  std::vector<WorkerToken> out;
  out.reserve(tokens.size());
  for (const v1::GeneratedToken& token : tokens) {
    WorkerToken& next = out.emplace_back(WorkerToken{.token = token.token(),
                                                     .logprob = token.logprob(),
                                                     .margin = token.margin(),
                                                     .entropy = token.entropy()});
    for (const v1::TokenLogprob& top : token.top()) next.top.push_back({top.token(), top.logprob()});
  }
  return out;
}

// `error` of the call of `context`, which tells whether there was a connection: then gRPC has its address for
// the call's peer, before that what the channel was made with.
Status MarkUnreached(const Status& error, const grpc::ClientContext& context) {
  if (error.code() != StatusCode::kUnavailable || !Reason(error).empty()) return error;
  const std::string peer = context.peer();
  const bool is_address = peer.starts_with("ipv4:") || peer.starts_with("ipv6:");
  return is_address ? error : WithReason(error, kUnreachedReason);
}

// Checks the order of one call's events and passes them on.
class ExecuteState {
 public:
  ExecuteState(const ExecuteSpec& spec, std::shared_ptr<ExecuteEvents> events)
      : next_token_(spec.resume.size()),
        next_score_(1),
        prompt_tokens_(spec.prompt->size()),
        events_(std::move(events)) {}

  Status OnEvent(v1::ExecuteEvent& event) {
    if (finished_) return ProtocolError("an event after the last one");
    switch (event.event_case()) {
      case v1::ExecuteEvent::kTokens:
        if (event.tokens().first_index() != next_token_) return ProtocolError("tokens lost or repeated");
        next_token_ += event.tokens().tokens_size();
        events_->OnTokens(FromProto(event.tokens().tokens()));
        return {};
      case v1::ExecuteEvent::kPromptScores:
        if (event.prompt_scores().first_index() != next_score_)
          return ProtocolError("scores lost or repeated");
        next_score_ += event.prompt_scores().scores_size();
        if (next_score_ > prompt_tokens_) return ProtocolError("more scores than prompt tokens");
        events_->OnPromptScores(FromProto(event.prompt_scores().scores()));
        return {};
      case v1::ExecuteEvent::kFinished:
        return OnFinished(event.finished());
      case v1::ExecuteEvent::kStarted:
        if (std::exchange(is_started_, true)) return ProtocolError("started twice");
        if (event.started().cached_tokens() > prompt_tokens_)
          return ProtocolError("more cached tokens than prompt tokens");
        events_->OnStarted(event.started().cached_tokens());
        return {};
      case v1::ExecuteEvent::EVENT_NOT_SET:
        break;  // of a newer worker
    }
    return {};
  }

  void OnEnd(const Status& status) {
    if (!status.ok()) {
      events_->OnDone(status);
    } else if (!finished_) {
      events_->OnDone(ProtocolError("the stream ended without its last event"));
    } else {
      events_->OnDone(result_);
    }
  }

 private:
  Status OnFinished(const v1::ExecuteFinished& finished) {
    if (finished.reason() != v1::FINISH_REASON_STOP && finished.reason() != v1::FINISH_REASON_LENGTH) {
      return ProtocolError(Concat("finish reason ", static_cast<int>(finished.reason())));
    }
    if (finished.generated_tokens() != next_token_) return ProtocolError("tokens lost before the end");
    if (finished.accepted_speculated_tokens() > finished.speculated_tokens()) {
      return ProtocolError(Concat(finished.accepted_speculated_tokens(), " accepted tokens of ",
                                  finished.speculated_tokens(), " drafted ones"));
    }
    finished_ = true;
    result_.end = finished.reason() == v1::FINISH_REASON_STOP ? AnswerEnd::kStop : AnswerEnd::kLength;
    result_.usage = {.prompt_tokens = finished.prompt_tokens(),
                     .cached_tokens = finished.cached_tokens(),
                     .completion_tokens = finished.generated_tokens(),
                     .speculated_tokens = finished.speculated_tokens(),
                     .accepted_speculated_tokens = finished.accepted_speculated_tokens()};
    result_.queue_seconds = finished.queue_seconds();
    result_.prefill_seconds = finished.prefill_seconds();
    result_.decode_seconds = finished.decode_seconds();
    return {};
  }

  uint64_t next_token_, next_score_;
  const uint64_t prompt_tokens_;
  bool is_started_ = false, finished_ = false;
  ExecuteResult result_;
  const std::shared_ptr<ExecuteEvents> events_;
};

// Checks epoch and sequence of one Watch stream.
class WatchState {
 public:
  StatusOr<WatchUpdate> OnUpdate(const v1::WorkerUpdate& update) {
    if (update.sequence() != next_sequence_ || (next_sequence_ > 0 && update.epoch() != epoch_)) {
      return Aborted("watch: update ", update.sequence(), " of epoch ", update.epoch(), " after ",
                     next_sequence_, " of epoch ", epoch_);
    }
    epoch_ = update.epoch();
    ++next_sequence_;
    const v1::WorkerLoad& load = update.load();
    WatchUpdate out{.load = {.running_sequences = load.running_sequences(),
                             .waiting_sequences = load.waiting_sequences(),
                             .waiting_prompt_tokens = load.waiting_prompt_tokens(),
                             .free_blocks = load.free_blocks(),
                             .total_blocks = load.total_blocks(),
                             .cached_blocks = load.cached_blocks(),
                             .speculated_tokens = load.speculated_tokens(),
                             .accepted_speculated_tokens = load.accepted_speculated_tokens()}};
    const v1::PrefixDelta& prefixes = update.prefixes();
    out.arrived = RealClock().Now();
    out.prefixes = {.is_snapshot = prefixes.is_snapshot(),
                    .added = {prefixes.added().begin(), prefixes.added().end()},
                    .removed = {prefixes.removed().begin(), prefixes.removed().end()},
                    .digest = prefixes.digest()};
    if (update.state() == v1::WORKER_STATE_READY) out.state = ReplicaState::kReady;
    if (update.state() == v1::WORKER_STATE_DRAINING) out.state = ReplicaState::kDraining;
    return out;
  }

 private:
  uint64_t epoch_ = 0, next_sequence_ = 0;
};

// The worker process that was described last: the one whose updates are meant. Thread-safe.
class DescribedInstance {
 public:
  void Set(const std::string& instance) {
    std::lock_guard lock(mutex_);
    instance_ = instance;
  }
  std::string Get() const {
    std::lock_guard lock(mutex_);
    return instance_;
  }

 private:
  mutable std::mutex mutex_;
  std::string instance_;  // GUARDED_BY(mutex_)
};

class GrpcWorkerConnection : public WorkerConnection {
 public:
  GrpcWorkerConnection(const std::string& address, const WorkerChannelOptions& options)
      : stub_(v1::Worker::NewStub(MakeChannel(address, options))) {}

  std::unique_ptr<CallHandle> Describe(Duration timeout, Done<ReplicaDescription> on_done) override {
    struct Call {
      std::shared_ptr<grpc::ClientContext> context = std::make_shared<grpc::ClientContext>();
      v1::DescribeRequest request;
      v1::WorkerDescription response;
    };
    auto call = std::make_shared<Call>();
    call->context->set_deadline(WallDeadline(timeout));
    stub_->async()->Describe(
        call->context.get(), &call->request, &call->response,
        [call, on_done = std::move(on_done), described = described_](const grpc::Status& status) {
          if (!status.ok()) return on_done(FromGrpcStatus(status, *call->context));
          const v1::WorkerDescription& from = call->response;
          if (const Status spoken = CheckProtocol(from); !spoken.ok()) return on_done(spoken);
          described->Set(from.instance());
          on_done(ReplicaDescription{.instance = from.instance(),
                                     .model = from.model(),
                                     .model_digest = from.model_digest(),
                                     .text_digest = from.text_digest(),
                                     .version = from.version(),
                                     .device = from.device(),
                                     .weight_dtype = from.weight_dtype(),
                                     .parameters = from.parameters(),
                                     .vocab_size = from.vocab_size(),
                                     .context_length = from.context_length(),
                                     .block_tokens = from.block_tokens(),
                                     .max_sequences = from.max_sequences(),
                                     .kv_layout = from.kv_layout(),
                                     .drafter = from.drafter()});
        });
    return std::make_unique<ContextHandle>(call->context);
  }

  std::unique_ptr<CallHandle> FetchText(const std::string& digest, Duration timeout,
                                        Done<std::string> on_done) override {
    auto context = std::make_shared<grpc::ClientContext>();
    context->set_deadline(WallDeadline(timeout));
    auto bytes = std::make_shared<std::string>();
    auto* call = new StreamCall<v1::TextChunk>(
        context,
        [bytes](v1::TextChunk& chunk) -> Status {
          if (bytes->size() + chunk.data().size() > kMaxTextBytes)
            return ProtocolError("text assets over 256 MiB");
          bytes->append(chunk.data());
          return {};
        },
        [bytes, on_done = std::move(on_done)](const Status& status) {
          on_done(status.ok() ? StatusOr<std::string>(std::move(*bytes)) : status);
        });
    v1::FetchTextRequest request;
    request.set_digest(digest);
    stub_->async()->FetchText(context.get(), &request, call);  // Start() serializes the request
    call->Start();
    return std::make_unique<ContextHandle>(context);
  }

  std::unique_ptr<CallHandle> Watch(std::function<void(WatchUpdate)> on_update,
                                    std::function<void(Status)> on_done) override {
    auto context = std::make_shared<grpc::ClientContext>();
    auto* call = new StreamCall<v1::WorkerUpdate>(
        context,
        [state = std::make_shared<WatchState>(),
         on_update = std::move(on_update)](v1::WorkerUpdate& message) -> Status {
          ASSIGN_OR_RETURN(WatchUpdate update, state->OnUpdate(message));
          on_update(std::move(update));
          return {};
        },
        std::move(on_done));
    v1::WatchRequest request;
    request.set_instance(described_->Get());
    stub_->async()->Watch(context.get(), &request, call);
    call->Start();
    return std::make_unique<ContextHandle>(context);
  }

  std::shared_ptr<CallHandle> Execute(const ExecuteSpec& spec,
                                      std::shared_ptr<ExecuteEvents> events) override {
    auto context = std::make_shared<grpc::ClientContext>();
    context->set_deadline(WallDeadline(spec.deadline - RealClock().Now()));
    AddMetadata(*context, "traceparent", spec.traceparent);
    AddMetadata(*context, "tracestate", spec.tracestate);
    const auto pause = std::make_shared<ReadPause>(events, context->deadline());
    const auto state = std::make_shared<ExecuteState>(spec, std::move(events));
    const auto handle = std::make_shared<PausableHandle>(context, pause);
    const uint64_t id = running_->Add(handle);
    auto* call = new StreamCall<v1::ExecuteEvent>(
        context, [state](v1::ExecuteEvent& event) { return state->OnEvent(event); },
        [state, id, context, running = running_](const Status& status) {
          const Status why = running->Remove(id);
          state->OnEnd(status.ok() || why.ok() ? MarkUnreached(status, *context) : why);
        },
        pause);
    const v1::ExecuteRequest request = ToProto(spec);
    stub_->async()->Execute(context.get(), &request, call);
    call->Start();
    return handle;
  }

  void EndCalls(const Status& why) override { running_->EndAll(why); }

 private:
  const std::unique_ptr<v1::Worker::Stub> stub_;
  const std::shared_ptr<DescribedInstance> described_ = std::make_shared<DescribedInstance>();
  const std::shared_ptr<RunningCalls> running_ = std::make_shared<RunningCalls>();
};

}  // namespace

std::shared_ptr<WorkerConnection> WorkerConnection::Make(const std::string& address,
                                                         const WorkerChannelOptions& options) {
  KeepCallbackThreads();
  return std::make_shared<GrpcWorkerConnection>(address, options);
}

}  // namespace terrace
