// terrace.v1.Drafts over one Engine: its model drafts for answers of other workers.
//
// A drafted sequence is one of the engine's, of the lowest priority, which pauses when it is as far ahead as
// its caller wants (DraftRun). When the answer goes on otherwise it is cancelled, and another one begins
// behind what is known, most of which the prefix cache holds. So requests come first: they are admitted
// before, and take places and blocks away from drafts. What is held is bounded (Options); who finds no room
// gets no drafts.
//
// No handler blocks. Any thread. What is borrowed outlives the gRPC server it is registered with; the engine
// has stopped when this is destroyed.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "base/status.h"
#include "proto/terrace/v1/drafts.grpc.pb.h"
#include "worker/engine/engine.h"
#include "worker/server/worker_metrics.h"

namespace terrace {

class DraftService : public v1::Drafts::CallbackService {
 public:
  struct Options {
    std::string tokenizer_digest = "";  // of the engine's model (TokenizerDigest)
    size_t max_streams = 64;            // more are refused
    double hello_seconds = 10;          // a stream that has not said hello by then is ended
    // Of a stream: sequences, and their tokens together.
    size_t max_sequences = 1024, max_tokens = size_t{1} << 22;
    size_t max_running = 16;  // of all streams, in the engine at once: they may take places of its inbox
  };

  DraftService(Options options, Engine& engine, WorkerMetrics& metrics);

  // Ends every stream with UNAVAILABLE, reason draining, now and from now on, and cancels what it drafts.
  // Idempotent.
  void Stop();

  grpc::ServerBidiReactor<v1::ProposeRequest, v1::ProposeResponse>* Propose(
      grpc::CallbackServerContext* context) override;

 private:
  class Stream;
  class Run;

  Status Enter(Stream& stream);
  void Leave(Stream& stream);
  Status CheckHello(const v1::DraftsHello& hello) const;
  Status Submit(SequenceSpec spec, std::shared_ptr<Run> run);

  const Options options_;
  Engine& engine_;
  WorkerMetrics& metrics_;
  std::atomic<size_t> running_ = 0;  // runs that the engine has
  std::mutex mutex_;                 // taken before a stream's
  std::set<Stream*> streams_;        // GUARDED_BY(mutex_): each gRPC's until its OnDone
  bool has_stopped_ = false;         // GUARDED_BY(mutex_)
};

}  // namespace terrace
