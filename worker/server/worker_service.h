// terrace.v1.Worker over one Engine. Tokens in, tokens out; no handler blocks. Any thread; everything
// borrowed outlives the gRPC server it is registered with. The engine's on_flush calls Flush.
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "proto/terrace/v1/worker.grpc.pb.h"
#include "worker/engine/engine.h"
#include "worker/server/execute_call.h"
#include "worker/server/serve_hub.h"
#include "worker/server/watch_hub.h"
#include "worker/server/worker_metrics.h"

namespace terrace {

// There is work, and no step has begun or ended for `least_limit`; or for longer, up to 300 s, where so many
// tokens take a quarter of that even at the fastest rate so far: a long prompt is computed on few processors.
// What it has still to do is done elsewhere then.
bool IsStalled(const EngineStats& stats, MonoTime now, Duration least_limit);

class WorkerService : public v1::Worker::CallbackService {
 public:
  struct Options {
    v1::WorkerDescription description;  // `instance` is drawn by the service
    std::string text_assets;            // serialized; its digest is in the description
    ServeHub::Options serve = {};
    Duration stall_limit = std::chrono::seconds(10);  // IsStalled's least, by which Watch tells
    std::function<void()> on_draining = nullptr;      // called once, before the first sequence is refused
  };

  WorkerService(Options options, Engine& engine, WorkerMetrics& metrics);

  v1::WorkerState state() const { return state_; }
  // STARTING -> READY.
  void SetReady();
  // Any state -> DRAINING; the rest as Engine::Drain.
  void Drain(std::function<void()> done);
  // What a step has given to sinks goes to callers.
  void Flush() { serves_.Flush(); }
  // Ends the Watch calls, and those of Serve when their answers have ended; the engine's Stop ends these, and
  // all other calls.
  void StopStreams();

  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context, const v1::DescribeRequest* request,
                                     v1::WorkerDescription* response) override;
  grpc::ServerWriteReactor<v1::TextChunk>* FetchText(grpc::CallbackServerContext* context,
                                                     const v1::FetchTextRequest* request) override;
  grpc::ServerWriteReactor<v1::ExecuteEvent>* Execute(grpc::CallbackServerContext* context,
                                                      const v1::ExecuteRequest* request) override;
  grpc::ServerBidiReactor<v1::ServeCommands, v1::ServeEvents>* Serve(
      grpc::CallbackServerContext* context) override;
  grpc::ServerWriteReactor<v1::WorkerUpdate>* Watch(grpc::CallbackServerContext* context,
                                                    const v1::WatchRequest* request) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;

 private:
  v1::WorkerUpdate Snapshot(std::optional<uint64_t>& position) const;

  Options options_;
  Engine& engine_;
  const ExecuteHost host_;
  const uint64_t epoch_;
  std::atomic<v1::WorkerState> state_ = v1::WORKER_STATE_STARTING;
  std::atomic<bool> has_told_draining_ = false;
  WatchHub watches_;
  ServeHub serves_;
};

}  // namespace terrace
