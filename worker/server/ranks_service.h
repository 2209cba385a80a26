// terrace.v1.Ranks: how a group's leader meets its other ranks. It lets in who fits, and leads the rounds in
// which all tell each other something. Any thread; no handler blocks. Outlives the gRPC server it is
// registered with.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/terrace/v1/ranks.grpc.pb.h"

namespace terrace {

class RanksService : public v1::Ranks::CallbackService {
 public:
  // What rank 0 would say of itself, were it to join: others have to agree.
  explicit RanksService(v1::RankHello own);

  // Rank 0's part in the next round: what all ranks have told, in their order, once they have; it asks
  // `is_cancelled` while it waits. UNAVAILABLE when a rank has gone since the first round, CANCELLED. One
  // thread at a time.
  StatusOr<std::vector<std::string>> Tell(const std::string& mine, const std::function<bool()>& is_cancelled);
  // UNAVAILABLE when a rank has gone since the first round, with its number; waits for nothing.
  Status FindLost();
  // Ends every stream, now and from now on. Idempotent.
  void Stop();

  grpc::ServerBidiReactor<v1::JoinRequest, v1::JoinResponse>* Join(
      grpc::CallbackServerContext* context) override;

 private:
  class Stream;

  // All with mutex_ held.
  Status Enter(Stream& stream, const v1::RankHello& hello);
  void Leave(const Stream& stream, const Status& why);
  bool HaveAllTold() const;

  const v1::RankHello own_;
  std::mutex mutex_;
  // All GUARDED_BY(mutex_):
  std::vector<Stream*> ranks_;  // each gRPC's until its OnDone; null: not there, like 0
  uint64_t rounds_ = 0;         // that are over
  Status lost_;                 // why nobody can join any more, once somebody has gone or Stop was called
  std::condition_variable changed_;
};

}  // namespace terrace
