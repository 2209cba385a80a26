// The Worker.Serve calls of one worker: streams of many answers each, mostly one for each router.
//
// What a call has to send waits in its ExecuteCall, and a stream has a list of the calls that have something.
// Each message takes from them in turn, up to a size. It is written when Flush says that a step has given all
// it has, so that one message has what the step made, or when the message before has gone out. A call takes
// part as long as its caller has given it credit; so one that is read slowly fills its own buffer, and pauses
// its own sequence, whatever the others do.
//
// No handler blocks. Any thread. `host` outlives the hub; the gRPC server has shut down, and the engine has
// stopped, when it is destroyed.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "grpcpp/support/server_callback.h"
#include "proto/terrace/v1/worker.pb.h"
#include "worker/server/execute_call.h"

namespace terrace {

class ServeHub {
 public:
  struct Options {
    ExecuteCall::Options execute = {};
    // Of a stream, at once; more are refused (overloaded), and the stream ends (RESOURCE_EXHAUSTED) when
    // twice as many wait to be told of. The engine refuses long before: this bounds answers that have ended
    // and that their caller does not take.
    size_t max_calls = size_t{1} << 16;
  };

  ServeHub(const Options& options, const ExecuteHost& host) : options_(options), host_(host) {}

  grpc::ServerBidiReactor<v1::ServeCommands, v1::ServeEvents>* Serve(grpc::CallbackServerContext& context);
  // Sends what the calls have. After every step of the engine, as without it nothing of the step is sent.
  void Flush();
  // Streams end (UNAVAILABLE, reason draining) as soon as their calls have, now and from now on. Idempotent.
  void Stop();

 private:
  class Call;
  class Stream;

  void Leave(const Stream& stream);

  const Options options_;
  const ExecuteHost& host_;
  std::mutex mutex_;                              // held for moments; no stream's with it
  std::vector<std::shared_ptr<Stream>> streams_;  // GUARDED_BY(mutex_): each until its OnDone
  bool has_stopped_ = false;                      // GUARDED_BY(mutex_)
};

}  // namespace terrace
