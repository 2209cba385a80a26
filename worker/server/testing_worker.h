// A worker without a model, for tests: the gRPC service over an engine whose executor is a fake, and an
// in-process channel to it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "grpcpp/server_builder.h"
#include "proto/terrace/v1/worker.grpc.pb.h"
#include "worker/engine/fake_executor.h"
#include "worker/server/worker_service.h"

namespace terrace {

inline constexpr uint32_t kVocab = 1000;

// Its sequences run for as long as a test may take.
struct FakeWorker {
  explicit FakeWorker(FakeExecutor::Options fake = {}, ServeHub::Options serve = {}, size_t inbox = 64,
                      double drain_seconds = 600, std::unique_ptr<Drafter> drafter = nullptr,
                      const Clock& clock = RealClock())
      : engine({.scheduler = {.max_sequences = 4,
                              .max_step_tokens = 16,
                              .context_length = 1 << 20,
                              .vocab_size = kVocab,
                              .block_tokens = 16,
                              .blocks = 1 << 18},
                .inbox = inbox,
                .drain_seconds = drain_seconds,
                .on_flush = [this] { service.Flush(); },
                .adapts_speculation = false},
               std::make_unique<FakeExecutor>(std::move(fake)), clock, std::move(drafter)),
        service({.description = Description(), .text_assets = std::string(2'500'000, 't'), .serve = serve},
                engine, metrics) {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service);
    server = builder.BuildAndStart();
    stub = v1::Worker::NewStub(server->InProcessChannel({}));
  }

  ~FakeWorker() {
    engine.Stop();
    service.StopStreams();
    server->Shutdown(std::chrono::system_clock::now());
  }

  static v1::WorkerDescription Description() {
    v1::WorkerDescription description;
    description.set_model("fake");
    description.set_text_digest("d1");
    return description;
  }

  // Reads updates until one says `wanted`; false when the stream ends first.
  bool AwaitUpdate(const std::function<bool(const v1::WorkerUpdate&)>& wanted) {
    grpc::ClientContext context;
    auto reader = stub->Watch(&context, {});
    v1::WorkerUpdate update;
    while (reader->Read(&update)) {
      if (!wanted(update)) continue;
      context.TryCancel();
      return true;
    }
    return false;
  }
  bool AwaitIdle() {
    return AwaitUpdate([](const v1::WorkerUpdate& update) {
      const v1::WorkerLoad& load = update.load();
      return load.steps() > 0 && load.running_sequences() == 0 &&
             load.free_blocks() + load.cached_blocks() == load.total_blocks();
    });
  }
  bool AwaitPaused() {
    return AwaitUpdate([this](const v1::WorkerUpdate&) { return engine.Stats().paused == 1; });
  }

  WorkerMetrics metrics;
  Engine engine;
  WorkerService service;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<v1::Worker::Stub> stub;
};

inline v1::ExecuteRequest Request(uint32_t max_tokens) {
  v1::ExecuteRequest request;
  request.add_prompt_tokens(1);
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_seed(3);
  return request;
}

// What Request is answered with.
inline std::vector<int32_t> ExpectedAnswer(int max_tokens) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < max_tokens; ++i) tokens.push_back(FakeExecutor::AnswerToken(3, i, kVocab));
  return tokens;
}

}  // namespace terrace
