// A rank's stream to the leader of its group (terrace.v1.Ranks): it joins with its first round. Made and used
// by one thread; what comes is brought by gRPC's.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "proto/terrace/v1/ranks.grpc.pb.h"

namespace terrace {

class JoinCall : private grpc::ClientBidiReactor<v1::JoinRequest, v1::JoinResponse> {
 public:
  JoinCall(const std::shared_ptr<grpc::Channel>& channel, v1::RankHello hello);
  ~JoinCall() override;  // not on a thread of gRPC's: ends the stream, and waits until it has ended

  // The next round: what all ranks have told, once they have; it asks `is_cancelled` while it waits. Errors
  // of the stream's end: of the leader's refusal, UNAVAILABLE when it cannot be reached or has gone;
  // CANCELLED.
  StatusOr<std::vector<std::string>> Tell(const std::string& mine, const std::function<bool()>& is_cancelled);
  // Why the stream has ended; OK while it has not. Any thread.
  Status FindEnd();

 private:
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  const std::unique_ptr<v1::Ranks::Stub> stub_;
  grpc::ClientContext context_;
  v1::JoinRequest request_;    // this rank's thread's, but while it is written
  v1::JoinResponse response_;  // being read: there is always a read under way, which keeps the call
  std::mutex mutex_;
  // All GUARDED_BY(mutex_):
  bool is_writing_ = false;
  bool is_over_ = false;  // nothing more can be written
  std::optional<std::vector<std::string>> answer_;
  std::optional<Status> end_;  // gRPC is done with the call
  std::condition_variable changed_;
};

}  // namespace terrace
