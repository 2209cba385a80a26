// A call of Worker.Execute: one answer over a stream of its own. Kept alive by itself until gRPC is done with
// it, and by the engine until the sequence has ended. Any thread.
#pragma once

#include <memory>
#include <mutex>

#include "grpcpp/support/server_callback.h"
#include "worker/server/execute_call.h"

namespace terrace {

class ExecuteReactor : public grpc::ServerWriteReactor<v1::ExecuteEvent>, public ExecuteCall {
 public:
  // `host` outlives the call.
  static grpc::ServerWriteReactor<v1::ExecuteEvent>* Start(const Options& options, const ExecuteHost& host,
                                                           grpc::CallbackServerContext& context,
                                                           const v1::ExecuteRequest& request);

  void OnWriteDone(bool ok) override;
  void OnCancel() override { Abandon(); }
  void OnDone() override;

 private:
  ExecuteReactor(const Options& options, const ExecuteHost& host, grpc::CallbackServerContext& context);

  void OnReady() override;
  void Abandon();
  void Continue();

  const ExecuteHost& host_;
  grpc::CallbackServerContext& context_;           // gRPC's, until OnDone
  std::shared_ptr<ExecuteReactor> self_;           // until OnDone
  std::mutex mutex_;                               // taken before that of ExecuteCall
  v1::ExecuteEvent written_;                       // GUARDED_BY(mutex_), but while it is being written
  bool is_writing_ = false, is_finished_ = false;  // GUARDED_BY(mutex_)
};

}  // namespace terrace
