// A whole worker in one object: opens the model, listens, warms up, serves. terrace-worker's main holds one;
// so do tests. Start, Drain and Stop from the owner's thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/http_server.h"
#include "base/status.h"
#include "base/tls.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server.h"
#include "worker/engine/open_engine.h"
#include "worker/server/draft_service.h"
#include "worker/server/meet_group.h"
#include "worker/server/worker_metrics.h"
#include "worker/server/worker_service.h"

namespace terrace {

// Where the worker is that drafts for this one (RemoteDrafter).
struct DrafterEndpoint {
  std::string address;
  std::optional<TlsFiles> tls = {};  // absent: plain text
  std::string server_name = "";      // that its certificate is for; "": the host of the address
};

struct WorkerServerOptions {
  OpenEngineOptions engine;  // its callbacks are the server's
  std::string served_name;   // "": the model's own name
  std::string grpc = "127.0.0.1:0";
  // "": no ops listener. Of a rank that does not lead its group it has FollowerHealth alone.
  std::string ops = "";
  std::optional<TlsFiles> tls = {};                    // of grpc; absent: plain text
  std::optional<DrafterEndpoint> remote_drafter = {};  // with engine.speculation.drafter: remote
  GroupEndpoint group = {};                            // with several engine.group.ranks
  // Called by Stop when the engine's step hangs (StopEngine), with UNAVAILABLE, reason step_hangs. It ends
  // the process, as nothing that the step uses can be taken down.
  std::function<void(const Status&)> on_step_hangs = nullptr;
};

// GroupOptions::join of engine.group and `group`.
decltype(GroupOptions::join) JoinOf(const WorkerServerOptions& options);

// For how long there may be work and no step: 10 s, and in a group 5 s more than a rank may keep the others
// waiting, if that is longer.
Duration StallLimit(const WorkerServerOptions& options);
// Liveness follows the engine's steps: false when there is work and no step was made for `stall_limit`, and
// when the device, or a rank of the group, is lost.
bool IsAlive(const EngineStats& stats, MonoTime now, Duration stall_limit);

class WorkerServer {
 public:
  // With several ranks this one leads them (engine.group.rank is 0), and it waits for the others. Errors of
  // OpenEngine (CANCELLED also in the warm-up); UNAVAILABLE for an address that cannot be bound,
  // FAILED_PRECONDITION for certificates that cannot be used.
  static StatusOr<std::unique_ptr<WorkerServer>> Start(WorkerServerOptions options);
  ~WorkerServer();  // Stop()

  const std::string& grpc_address() const { return grpc_address_; }  // with the real port
  std::string ops_address() const { return ops_ == nullptr ? "" : ops_->address(); }
  EngineStats Stats() const { return opened_.engine->Stats(); }
  // Not OK once the device, or a rank of the group, is lost: the worker then drains by itself, has nothing
  // left to run, and should end.
  Status device_error() const { return opened_.engine->device_error(); }

  // Turns health and readiness off; the rest as Engine::Drain.
  void Drain(std::function<void()> done);
  // Hands every sequence over, ends every call and closes the listeners. Idempotent.
  void Stop();

 private:
  WorkerServer() = default;
  StatusOr<std::shared_ptr<TlsSource>> OpenTls(const std::optional<TlsFiles>& files, const std::string& path,
                                               const std::string& use);
  std::unique_ptr<Drafter> MakeRemoteDrafter(const DrafterEndpoint& endpoint, const ModelFiles& files);
  void OpenServices(const WorkerServerOptions& options);
  Status Open(const WorkerServerOptions& options);
  Status Listen(const WorkerServerOptions& options);
  Status WarmUp(const std::function<bool()>& is_cancelled);
  void OnDeviceLost(const Status& error);
  void OnStepHangs(Duration since_last_step);
  void OnDraining();
  void UpdateHealth();
  void Answer(const HttpRequest& request, HttpResponder& responder);
  void LogReady(double load_seconds, double warm_up_seconds) const;

  WorkerMetrics metrics_;
  std::shared_ptr<TlsSource> tls_, drafter_tls_;  // null: plain text
  OpenedEngine opened_;
  std::string served_name_, grpc_address_;
  std::unique_ptr<WorkerService> service_;
  // service_, for the engine's loop, which runs before there is one: null until then.
  std::atomic<WorkerService*> opened_service_ = nullptr;
  std::unique_ptr<DraftService> drafts_;  // null without a prefix cache
  std::unique_ptr<grpc::Server> grpc_;
  std::mutex health_mutex_;  // a Drain call may come while the server is being made
  grpc::HealthCheckServiceInterface* health_ = nullptr;  // of grpc_; GUARDED_BY(health_mutex_)
  std::unique_ptr<HttpServer> ops_;
  Duration stall_limit_ = {};
  std::function<void(const Status&)> on_step_hangs_;
  bool has_stopped_ = false;
};

}  // namespace terrace
