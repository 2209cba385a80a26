// One Worker.Serve stream: the calls to one worker that share it
// (docs/adr/0010-one-stream-for-many-answers.md).
//
// What comes is read at once, always, whoever of the calls' readers has room: each call has its own credit, a
// bound of what the worker may send ahead of its reader, and what a full reader does not take waits with its
// call. So no reader holds another up. A call's events are told by one thread at a time: mostly the one of
// gRPC's that has read them, but for ends, which may take long and which others tell.
//
// Owned by its connection and by its calls, and by itself until gRPC is done with it. Thread-safe.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "google/protobuf/arena.h"
#include "grpcpp/alarm.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "proto/terrace/v1/worker.grpc.pb.h"
#include "router/cluster/execute_events.h"
#include "router/cluster/replica_client.h"

namespace terrace {

class ServeStream : public grpc::ClientBidiReactor<v1::ServeCommands, v1::ServeEvents>,
                    public std::enable_shared_from_this<ServeStream> {
 public:
  // `stub`'s channel is kept by gRPC as long as the stream lives.
  static std::shared_ptr<ServeStream> Open(v1::Worker::Stub& stub);

  // As ReplicaClient::Execute. On a stream that is broken the call ends with kUnreachedReason.
  std::shared_ptr<CallHandle> Start(const ExecuteSpec& spec, std::shared_ptr<ExecuteEvents> events);
  bool is_broken() const;
  // No more calls come: the stream ends with the last of them.
  void Close();
  // Ends it and its calls, these with the error `why`, whether the worker hears of it or not.
  void EndCalls(const Status& why);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  class Call;
  using CallPtr = std::shared_ptr<Call>;
  using End = StatusOr<ExecuteResult>;

  ServeStream();

  void Cancel(const CallPtr& call);
  void Resume(const CallPtr& call);
  void Take(const v1::ServeEvent& event);
  void Deliver(const CallPtr& call);
  std::optional<End> Tell(Call& call, const v1::ServeEvent& event);
  void Finish(Call& call, const End& end);
  void GiveCredit(Call& call, size_t logprobs);
  void OnSoon();
  void OnDeadline();
  void Write();
  void NewMessage();

  // All with mutex_ held.
  bool EndNow(Call& call, const Status& why);
  void DeliverSoon(const CallPtr& call);
  void SetAlarm();
  void CancelUnlessItEnds();
  void Send(v1::ServeCommand command);
  void FillBatch();
  bool TakeHold();

  grpc::ClientContext context_;
  alignas(16) std::array<char, 8192> block_;  // the arena's first
  google::protobuf::Arena arena_;             // of the message being read
  v1::ServeEvents* message_ = nullptr;
  v1::ServeCommands batch_;  // of who has set is_writing_, until it is written

  mutable std::mutex mutex_;
  // All GUARDED_BY(mutex_):
  std::shared_ptr<ServeStream> self_;  // until OnDone
  uint64_t last_id_ = 0;
  absl::flat_hash_map<uint64_t, CallPtr> calls_;       // that have not ended, by id
  std::set<std::pair<MonoTime, uint64_t>> deadlines_;  // theirs
  std::unique_ptr<grpc::Alarm> deadline_alarm_;        // of the first of them, or earlier
  MonoTime alarm_at_ = {};
  std::deque<v1::ServeCommand> outgoing_;
  std::vector<CallPtr> soon_;  // to be delivered by the alarm, and busy until then
  std::unique_ptr<grpc::Alarm> soon_alarm_;
  std::unique_ptr<grpc::Alarm> end_alarm_;  // since nothing more can be read
  bool is_writing_ = false;
  bool is_broken_ = false;     // nothing more is written, and no call begins
  bool is_closing_ = false;    // with its last call
  bool is_loss_told_ = false;  // by a call that was lost with the stream: the replica has failed once
  bool has_hold_ = true;       // gRPC waits for writes from outside its reactions
};

}  // namespace terrace
