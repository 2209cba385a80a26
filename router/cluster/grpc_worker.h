// The gRPC client of one worker: its channel and its calls. Nothing blocks; callbacks come on gRPC's threads.
// Its Execute calls share a stream (serve_stream.h), another one after one that broke. The only files of the
// router that know proto/terrace/v1/worker.proto are grpc_worker.cc, serve_stream, execute_events and this
// folder's tests.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "grpcpp/security/credentials.h"
#include "router/cluster/cluster_view.h"
#include "router/cluster/prefix_index.h"
#include "router/cluster/replica_client.h"

namespace terrace {

// Of errors that say: this worker cannot serve here, however healthy it is.
inline constexpr char kMismatchReason[] = "mismatch";

struct WatchUpdate {
  ReplicaState state = ReplicaState::kStarting;  // kStarting, kReady, kDraining or kStalled
  ReplicaLoad load = {};
  PrefixDelta prefixes = {};
  MonoTime arrived = {};
};

struct WorkerChannelOptions {
  std::shared_ptr<grpc::ChannelCredentials> credentials = {};  // null: plain text
  std::string server_name = {};  // that a worker's certificate is for; "": the host of its address
};

// Thread-safe. `on_done` callbacks come exactly once per call, also after Cancel and after this object is
// gone.
class WorkerConnection : public ReplicaClient {
 public:
  template <typename T>
  using Done = std::function<void(StatusOr<T>)>;

  // One connection, made on first use (MakePeerChannel).
  static std::shared_ptr<WorkerConnection> Make(const std::string& address,
                                                const WorkerChannelOptions& options = {});

  // FAILED_PRECONDITION, kMismatchReason: the worker speaks another version of the protocol.
  virtual std::unique_ptr<CallHandle> Describe(Duration timeout, Done<ReplicaDescription> on_done) = 0;
  // The bytes of the text assets with that digest, unchecked; at most 256 MiB.
  virtual std::unique_ptr<CallHandle> FetchText(const std::string& digest, Duration timeout,
                                                Done<std::string> on_done) = 0;
  // Updates until the stream ends. A gap in the sequence or a change of epoch ends it with ABORTED.
  virtual std::unique_ptr<CallHandle> Watch(std::function<void(WatchUpdate)> on_update,
                                            std::function<void(Status)> on_done) = 0;
  // Ends the Execute calls under way, each with the error `why`, whether the worker hears of it or not.
  virtual void EndCalls(const Status& why) = 0;
};

}  // namespace terrace
