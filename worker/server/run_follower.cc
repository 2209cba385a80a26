#include "worker/server/run_follower.h"

#include "base/log.h"
#include "base/version.h"
#include "worker/engine/follower.h"

namespace terrace {

Status RunFollower(const WorkerServerOptions& options, const std::function<bool()>& is_stopped) {
  const MonoTime begin = RealClock().Now();
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
       {"weight_memory_bytes", memory.weight_bytes},
       {"kv_bytes", memory.kv_bytes},
       {"kv_pool", loaded.kv.arithmetic},
       {"load_seconds", Seconds(RealClock().Now() - begin)},
       {"version", kVersion}});
  const Status end = follower->Run(is_stopped);
  if (end.ok() || end.code() == StatusCode::kCancelled) return Status();
  return WithReason(Unavailable("the group is lost: ", Message(end)), "group_lost");
}

}  // namespace terrace
