#include "worker/server/worker_service.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <utility>

#include "base/grpc_status.h"
#include "worker/server/execute_reactor.h"
#include "worker/server/proto_convert.h"

namespace terrace {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 20;
constexpr std::chrono::seconds kMostStallLimit(300);
constexpr int kSlower = 4;  // than the fastest a step may be: behind a long context, beside other programs

std::string DrawInstance() {
  std::random_device device;
  char text[17];
  std::snprintf(text, sizeof(text), "%08x%08x", device(), device());
  return text;
}

// Grows with every start on one machine.
uint64_t DrawEpoch() {
  return static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch() /
                               std::chrono::nanoseconds(1));
}

// Sends `text`, which outlives the call, in chunks.
class TextCall : public grpc::ServerWriteReactor<v1::TextChunk> {
 public:
  explicit TextCall(const std::string& text) : text_(text) { Continue(); }
  void OnWriteDone(bool ok) override {
    if (ok) return Continue();
    Finish(grpc::Status::CANCELLED);
  }
  void OnDone() override { delete this; }

 private:
  void Continue() {
    if (sent_ == text_.size()) return Finish(grpc::Status::OK);
    chunk_.set_data(text_.substr(sent_, kChunkBytes));
    sent_ += chunk_.data().size();
    StartWrite(&chunk_);
  }
  const std::string& text_;
  size_t sent_ = 0;
  v1::TextChunk chunk_;
};

// A stream that only says why there is none.
template <typename Response>
class FailedCall : public grpc::ServerWriteReactor<Response> {
 public:
  FailedCall(grpc::CallbackServerContext& context, const Status& error) {
    SetReasonTrailer(context, error);
    this->Finish(ToGrpcStatus(error));
  }
  void OnDone() override { delete this; }
};

}  // namespace

bool IsStalled(const EngineStats& stats, MonoTime now, Duration least_limit) {
  const Duration limit = std::clamp<Duration>(kSlower * stats.usual_step, least_limit,
                                              std::max<Duration>(least_limit, kMostStallLimit));
  return !stats.is_idle && now - stats.last_step > limit;
}

WorkerService::WorkerService(Options options, Engine& engine, WorkerMetrics& metrics)
    : options_(std::move(options)),
      engine_(engine),
      host_{.instance = DrawInstance(),
            .submit =
                [&engine](SequenceSpec spec, std::shared_ptr<TokenSink> sink) {
                  return engine.Submit(std::move(spec), std::move(sink));
                },
            .wake = [&engine] { engine.Wake(); },
            .metrics = metrics},
      epoch_(DrawEpoch()),
      watches_([this](auto& position) { return Snapshot(position); }),
      serves_(options_.serve, host_) {
  options_.description.set_instance(host_.instance);
}

void WorkerService::StopStreams() {
  watches_.Stop();
  serves_.Stop();
}

void WorkerService::SetReady() {
  v1::WorkerState starting = v1::WORKER_STATE_STARTING;
  state_.compare_exchange_strong(starting, v1::WORKER_STATE_READY);
  watches_.Notify();
}

void WorkerService::Drain(std::function<void()> done) {
  state_ = v1::WORKER_STATE_DRAINING;
  watches_.Notify();
  if (!has_told_draining_.exchange(true) && options_.on_draining) options_.on_draining();
  engine_.Drain(std::move(done));
}

v1::WorkerUpdate WorkerService::Snapshot(std::optional<uint64_t>& position) const {
  const EngineStats stats = engine_.Stats();
  v1::WorkerUpdate update;
  update.set_epoch(epoch_);
  update.set_state(state_);
  update.set_is_stalled(IsStalled(stats, RealClock().Now(), options_.stall_limit));
  v1::WorkerLoad& load = *update.mutable_load();
  // Background work gives way to requests.
  load.set_running_sequences(stats.running - stats.background_running);
  load.set_waiting_sequences(stats.waiting - stats.background_waiting);
  load.set_waiting_prompt_tokens(stats.waiting_prompt_tokens - stats.background_prompt_tokens);
  load.set_free_blocks(stats.free_blocks);
  load.set_cached_blocks(stats.cached_blocks);
  load.set_total_blocks(stats.total_blocks);
  load.set_steps(stats.steps);
  load.set_speculated_tokens(SpeculationStats::Sum(stats.speculation.verified));
  load.set_accepted_speculated_tokens(SpeculationStats::Sum(stats.speculation.accepted));
  const PrefixJournal::Delta delta = engine_.prefixes().Since(position);
  position = delta.position;
  v1::PrefixDelta& prefixes = *update.mutable_prefixes();
  prefixes.set_is_snapshot(delta.is_snapshot);
  prefixes.mutable_added()->Add(delta.added.begin(), delta.added.end());
  prefixes.mutable_removed()->Add(delta.removed.begin(), delta.removed.end());
  prefixes.set_digest(delta.digest);
  return update;
}

grpc::ServerUnaryReactor* WorkerService::Describe(grpc::CallbackServerContext* context,
                                                  const v1::DescribeRequest*,
                                                  v1::WorkerDescription* response) {
  *response = options_.description;
  if (const SpeculationStats drafted = engine_.Stats().speculation; !drafted.drafter.empty())
    ToProto(drafted, *response->mutable_speculation());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<v1::TextChunk>* WorkerService::FetchText(grpc::CallbackServerContext* context,
                                                                  const v1::FetchTextRequest* request) {
  if (const std::string& held = options_.description.text_digest(); request->digest() != held) {
    const Status error =
        NotFound("text assets \"", request->digest(), "\" are not held here; these are: ", held);
    return new FailedCall<v1::TextChunk>(*context, WithReason(error, "text_not_found"));
  }
  return new TextCall(options_.text_assets);
}

grpc::ServerWriteReactor<v1::ExecuteEvent>* WorkerService::Execute(grpc::CallbackServerContext* context,
                                                                   const v1::ExecuteRequest* request) {
  return ExecuteReactor::Start(options_.serve.execute, host_, *context, *request);
}

grpc::ServerBidiReactor<v1::ServeCommands, v1::ServeEvents>* WorkerService::Serve(
    grpc::CallbackServerContext* context) {
  return serves_.Serve(*context);
}

grpc::ServerWriteReactor<v1::WorkerUpdate>* WorkerService::Watch(grpc::CallbackServerContext* context,
                                                                 const v1::WatchRequest* request) {
  if (const Status meant = CheckInstance(request->instance(), host_.instance); !meant.ok())
    return new FailedCall<v1::WorkerUpdate>(*context, meant);
  return watches_.Watch();
}

grpc::ServerUnaryReactor* WorkerService::Drain(grpc::CallbackServerContext* context, const v1::DrainRequest*,
                                               v1::DrainResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const uint64_t finished_before = engine_.Stats().finished;
  Drain([this, reactor, response, finished_before] {
    response->set_finished_sequences(static_cast<uint32_t>(engine_.Stats().finished - finished_before));
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

}  // namespace terrace
