#include "worker/server/run_follower.h"

#include <utility>

#include "base/log.h"
#include "base/version.h"
#include "worker/engine/follower.h"
#include "worker/server/follower_health.h"

namespace terrace {
namespace {

// Null without an address. Answers before the rank has met the others.
StatusOr<std::unique_ptr<HttpServer>> ServeHealth(const std::string& address, const FollowerHealth& health) {
  if (address.empty()) return std::unique_ptr<HttpServer>();
  HttpServerOptions http;
  http.address = address;
  http.max_body_bytes = 0;
  auto server = HttpServer::Start(
      std::move(http),
      [&health](const HttpRequest& request, const std::shared_ptr<HttpResponder>& responder) {
        health.Answer(request, *responder, RealClock().Now());
      });
  if (!server.ok()) return Annotate(server.status(), "group.follower_ops");
  return server;
}

// Who waits in vain knows for whom it waited, not for whom that one did.
Status GroupLost(const Status& end) {
  const char* const hint =
      end.code() == StatusCode::kDeadlineExceeded
          ? "; that rank may itself have waited for another: the one that hangs says nothing"
          : "";
  return WithReason(Unavailable("the group is lost: ", Message(end), hint), "group_lost");
}

}  // namespace

Status RunFollower(const WorkerServerOptions& options, const std::function<bool()>& is_stopped) {
  const MonoTime begin = RealClock().Now();
  FollowerHealth health(StallLimit(options));
  ASSIGN_OR_RETURN(const auto ops, ServeHealth(options.ops, health));
  OpenEngineOptions engine = options.engine;
  engine.group.join = JoinOf(options);
  ASSIGN_OR_RETURN(const auto follower, Follower::Open(engine));
  const LoadedModel& loaded = follower->loaded();
  const RankMemory& memory = loaded.ranks[engine.group.rank];
  Log(LogLevel::kInfo, "worker_rank_ready",
      {{"rank", engine.group.rank},
       {"ranks", engine.group.ranks},
       {"pipeline_parallel", engine.group.stages},
       {"layers", loaded.kv_shape.layers},
       {"model", follower->files().config.name},
       {"device", loaded.device},
       {"threads", loaded.threads},
       {"file_bytes", loaded.file_bytes},
       {"hashed_bytes", loaded.hashed_bytes},
       {"weight_memory_bytes", memory.weight_bytes},
       {"kv_bytes", memory.kv_bytes},
       {"kv_pool", loaded.kv.arithmetic},
       {"load_seconds", Seconds(RealClock().Now() - begin)},
       {"version", kVersion}});
  const Status end = follower->Run([&] {
    health.OnTurn(RealClock().Now());
    return is_stopped();
  });
  return end.ok() || end.code() == StatusCode::kCancelled ? Status() : GroupLost(end);
}

}  // namespace terrace
