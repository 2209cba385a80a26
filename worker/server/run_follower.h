// The whole life of a rank that does not lead its group: joins, loads its part of the model, and runs the
// leader's steps until that stops. terrace-worker's main calls it.
#pragma once

#include <functional>

#include "base/status.h"
#include "worker/server/worker_server.h"

namespace terrace {

// Blocks. OK when the leader has stopped, or when `is_stopped`, which is asked about every half second, said
// so; CANCELLED when options.engine.is_cancelled did so before the rank was ready. UNAVAILABLE, reason
// group_lost, when the group broke; errors of Follower::Open, and of a listener at options.ops, which has
// /healthz and /readyz from the beginning on.
Status RunFollower(const WorkerServerOptions& options, const std::function<bool()>& is_stopped);

}  // namespace terrace
