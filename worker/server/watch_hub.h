// The Worker.Watch calls: each gets a snapshot, then numbered updates every 250 ms and whenever Notify is
// called. A client that reads slowly skips updates, never numbers. No thread of its own: a gRPC alarm ticks.
// Any thread.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>

#include "grpcpp/alarm.h"
#include "grpcpp/support/server_callback.h"
#include "proto/terrace/v1/worker.pb.h"

namespace terrace {

class WatchHub {
 public:
  // Gives the update of this moment, without its number: its prefixes since `position` in the journal, which
  // it moves on. It must not block or call back.
  using Snapshot = std::function<v1::WorkerUpdate(std::optional<uint64_t>& position)>;
  explicit WatchHub(Snapshot snapshot);
  ~WatchHub();  // Stop(), and no call may be left (the gRPC server has shut down)

  grpc::ServerWriteReactor<v1::WorkerUpdate>* Watch();
  void Notify();
  // Ends every call with UNAVAILABLE, now and from now on. Idempotent.
  void Stop();

 private:
  class Call;

  void ArmLocked();
  void NotifyLocked();
  void Tick();

  const Snapshot snapshot_;
  std::mutex mutex_;
  // All GUARDED_BY(mutex_):
  std::set<Call*> calls_;  // each owned by gRPC until its OnDone
  std::unique_ptr<grpc::Alarm> alarm_;
  bool is_armed_ = false, has_stopped_ = false;
  std::condition_variable disarmed_;
};

}  // namespace terrace
