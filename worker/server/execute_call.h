// One Worker.Execute call: the sink of its sequence and the writer of its stream. Events wait in a buffer
// while the client is not reading; past the bound the sequence pauses, and goes on when half of it is free
// again. So what a call holds is bounded by that and one step's output. Kept alive by itself until gRPC is
// done with it, and by the engine until the sequence has ended. Any thread.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/status.h"
#include "grpcpp/support/server_callback.h"
#include "proto/terrace/v1/worker.pb.h"
#include "worker/engine/engine.h"
#include "worker/server/worker_metrics.h"

namespace terrace {

class ExecuteCall : public grpc::ServerWriteReactor<v1::ExecuteEvent>, public TokenSink {
 public:
  struct Options {
    // Log-probabilities (of tokens, scores and their alternatives) that may wait for the client: about 4 MiB.
    size_t buffer_logprobs = size_t{1} << 16;
  };

  // The reactor of the call: the sequence of `request` is submitted, or the call ends with an error.
  // Everything borrowed outlives the call.
  static grpc::ServerWriteReactor<v1::ExecuteEvent>* Start(const Options& options, Engine& engine,
                                                           WorkerMetrics& metrics,
                                                           grpc::CallbackServerContext& context,
                                                           const v1::ExecuteRequest& request);

  void OnStarted(uint32_t cached_tokens) override;
  void OnTokens(uint32_t first_index, std::span<const SampledToken> tokens) override;
  void OnPromptScores(uint32_t first_index, std::span<const SampledToken> scores) override;
  void OnFinish(const SequenceResult& result) override;
  bool is_closed() const override { return is_closed_; }
  bool is_full() const override { return is_full_; }

  void OnWriteDone(bool ok) override;
  void OnCancel() override { Close(); }
  void OnDone() override;

 private:
  struct Waiting {
    v1::ExecuteEvent event;
    size_t logprobs = 0;
  };

  ExecuteCall(const Options& options, Engine& engine, WorkerMetrics& metrics,
              grpc::CallbackServerContext& context, std::string request_id)
      : options_(options),
        engine_(engine),
        metrics_(metrics),
        context_(context),
        request_id_(std::move(request_id)) {}

  void Refuse(const Status& error);
  v1::ExecuteEvent* Reserve(std::span<const SampledToken> tokens, v1::ExecuteEvent::EventCase kind);
  void Close();
  void End(Status status);
  void Continue();

  const Options options_;
  Engine& engine_;
  WorkerMetrics& metrics_;
  grpc::CallbackServerContext& context_;  // gRPC's, until OnDone
  const std::string request_id_;
  std::string traceparent_;            // as the router sent it
  std::shared_ptr<ExecuteCall> self_;  // until OnDone

  std::atomic<bool> is_closed_ = false, is_full_ = false;
  std::mutex mutex_;
  // All GUARDED_BY(mutex_):
  std::deque<Waiting> buffer_;    // the front one is being written while is_writing_
  size_t buffered_logprobs_ = 0;  // of buffer_
  bool is_writing_ = false, is_finished_ = false;
  std::optional<Status> end_;  // of the sequence: the last thing to say
};

}  // namespace terrace
