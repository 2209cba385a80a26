#include "router/cluster/grpc_worker.h"

#include <mutex>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/grpc_channel.h"
#include "base/grpc_status.h"
#include "grpcpp/grpcpp.h"
#include "proto/terrace/v1/worker.grpc.pb.h"
#include "router/cluster/execute_events.h"
#include "router/cluster/serve_stream.h"

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

class ContextHandle : public CallHandle {
 public:
  explicit ContextHandle(std::shared_ptr<grpc::ClientContext> context) : context_(std::move(context)) {}
  void Cancel() override { context_->TryCancel(); }

 private:
  const std::shared_ptr<grpc::ClientContext> context_;
};

// A server-streaming call that owns itself until OnDone. `on_message` judges each message: an error ends the
// call, and is what `on_done` gets.
template <typename Message>
class StreamCall : public grpc::ClientReadReactor<Message> {
 public:
  using OnMessage = std::function<Status(Message&)>;
  using OnEnd = std::function<void(Status)>;

  StreamCall(std::shared_ptr<grpc::ClientContext> context, OnMessage on_message, OnEnd on_end)
      : context_(std::move(context)), on_message_(std::move(on_message)), on_end_(std::move(on_end)) {}

  void Start() {
    this->StartRead(&message_);
    this->StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    error_ = on_message_(message_);
    message_.Clear();  // the next one may be long in coming
    if (error_.ok()) return this->StartRead(&message_);
    context_->TryCancel();
  }

  void OnDone(const grpc::Status& status) override {
    on_end_(error_.ok() ? FromGrpcStatus(status, *context_) : error_);
    delete this;
  }

 private:
  const std::shared_ptr<grpc::ClientContext> context_;
  const OnMessage on_message_;
  const OnEnd on_end_;
  Message message_;
  Status error_;
};

Status CheckProtocol(const v1::WorkerDescription& description) {
  if (description.protocol() == v1::WORKER_PROTOCOL_CURRENT) return {};
  return WithReason(
      FailedPrecondition("the worker (", description.version(), ") speaks protocol ", description.protocol(),
                         ", this router ", static_cast<int>(v1::WORKER_PROTOCOL_CURRENT)),
      kMismatchReason);
}

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
    // One that starts has a first step that may take long, and no requests.
    if (update.is_stalled() && out.state != ReplicaState::kStarting) out.state = ReplicaState::kStalled;
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
  ~GrpcWorkerConnection() override {
    if (stream_ != nullptr) stream_->Close();
  }

  std::unique_ptr<CallHandle> Describe(Duration timeout, Done<ReplicaDescription> on_done) override {
    struct Call {
      std::shared_ptr<grpc::ClientContext> context = std::make_shared<grpc::ClientContext>();
      v1::DescribeRequest request;
      v1::WorkerDescription response;
    };
    auto call = std::make_shared<Call>();
    call->context->set_deadline(WallTimeIn(timeout));
    stub_->async()->Describe(
        call->context.get(), &call->request, &call->response,
        [call, on_done = std::move(on_done), described = described_](const grpc::Status& status) {
          if (!status.ok()) return on_done(FromGrpcStatus(status, *call->context));
          const v1::WorkerDescription& from = call->response;
          if (const Status spoken = CheckProtocol(from); !spoken.ok()) return on_done(spoken);
          described->Set(from.instance());
          std::vector<uint64_t> rank_bytes;
          for (const v1::RankDescription& rank : from.ranks())
            rank_bytes.push_back(rank.weight_bytes() + rank.kv_bytes());
          on_done(ReplicaDescription{.instance = from.instance(),
                                     .model = from.model(),
                                     .model_digest = from.model_digest(),
                                     .text_digest = from.text_digest(),
                                     .version = from.version(),
                                     .device = from.device(),
                                     .weight_dtype = from.weight_dtype(),
                                     .kv_dtype = from.kv_dtype(),
                                     .compute = from.compute(),
                                     .parameters = from.parameters(),
                                     .vocab_size = from.vocab_size(),
                                     .context_length = from.context_length(),
                                     .block_tokens = from.block_tokens(),
                                     .max_sequences = from.max_sequences(),
                                     .kv_layout = from.kv_layout(),
                                     .drafter = from.drafter(),
                                     .rank_bytes = std::move(rank_bytes),
                                     .tensor_parallel = from.tensor_parallel(),
                                     .pipeline_parallel = from.pipeline_parallel()});
        });
    return std::make_unique<ContextHandle>(call->context);
  }

  std::unique_ptr<CallHandle> FetchText(const std::string& digest, Duration timeout,
                                        Done<std::string> on_done) override {
    auto context = std::make_shared<grpc::ClientContext>();
    context->set_deadline(WallTimeIn(timeout));
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
    return Stream()->Start(spec, std::move(events));
  }

  void EndCalls(const Status& why) override {
    std::shared_ptr<ServeStream> ended;
    {
      std::lock_guard lock(mutex_);
      ended.swap(stream_);
    }
    if (ended != nullptr) ended->EndCalls(why);
  }

 private:
  // One that is whole, as far as is known.
  std::shared_ptr<ServeStream> Stream() {
    std::lock_guard lock(mutex_);
    if (stream_ == nullptr || stream_->is_broken()) stream_ = ServeStream::Open(*stub_);
    return stream_;
  }

  const std::unique_ptr<v1::Worker::Stub> stub_;
  const std::shared_ptr<DescribedInstance> described_ = std::make_shared<DescribedInstance>();
  std::mutex mutex_;
  std::shared_ptr<ServeStream> stream_;  // GUARDED_BY(mutex_): of all calls from now on; null until the first
};

}  // namespace

std::shared_ptr<WorkerConnection> WorkerConnection::Make(const std::string& address,
                                                         const WorkerChannelOptions& options) {
  KeepCallbackThreads();
  return std::make_shared<GrpcWorkerConnection>(address, options);
}

}  // namespace terrace
