// terrace.v1.Worker over one Engine. Tokens in, tokens out; no handler blocks. Any thread; everything
// borrowed outlives the gRPC server it is registered with.
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "proto/terrace/v1/worker.grpc.pb.h"
#include "worker/engine/engine.h"
#include "worker/server/execute_call.h"
#include "worker/server/watch_hub.h"
#include "worker/server/worker_metrics.h"

namespace terrace {

class WorkerService : public v1::Worker::CallbackService {
 public:
  struct Options {
    v1::WorkerDescription description;  // `instance` is drawn by the service
    std::string text_assets;            // serialized; its digest is in the description
    ExecuteCall::Options execute = {};
    std::function<void()> on_draining = nullptr;  // called once, before the first sequence is refused
  };

  WorkerService(Options options, Engine& engine, WorkerMetrics& metrics);

  v1::WorkerState state() const { return state_; }
  // STARTING -> READY.
  void SetReady();
  // Any state -> DRAINING; the rest as Engine::Drain.
  void Drain(std::function<void()> done);
  // Ends the Watch calls; the engine's Stop ends all others.
  void StopWatches() { watches_.Stop(); }

  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context, const v1::DescribeRequest* request,
                                     v1::WorkerDescription* response) override;
  grpc::ServerWriteReactor<v1::TextChunk>* FetchText(grpc::CallbackServerContext* context,
                                                     const v1::FetchTextRequest* request) override;
  grpc::ServerWriteReactor<v1::ExecuteEvent>* Execute(grpc::CallbackServerContext* context,
                                                      const v1::ExecuteRequest* request) override;
  grpc::ServerWriteReactor<v1::WorkerUpdate>* Watch(grpc::CallbackServerContext* context,
                                                    const v1::WatchRequest* request) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;

 private:
  v1::WorkerUpdate Snapshot(std::optional<uint64_t>& position) const;
  bool IsMeant(const std::string& instance) const;
  Status WrongInstance() const;

  Options options_;
  Engine& engine_;
  WorkerMetrics& metrics_;
  const uint64_t epoch_;
  std::atomic<v1::WorkerState> state_ = v1::WORKER_STATE_STARTING;
  std::atomic<bool> has_told_draining_ = false;
  WatchHub watches_;
};

}  // namespace terrace
