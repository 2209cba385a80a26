// Whether a rank that does not lead its group is alive, and ready, for whoever asks at group.follower_ops.
// Any thread.
#pragma once

#include <atomic>

#include "base/clock.h"
#include "base/http_server.h"

namespace terrace {

class FollowerHealth {
 public:
  explicit FollowerHealth(Duration stall_limit) : stall_limit_(stall_limit) {}

  // The rank is between two steps, for the first time too; the leader has it come here twice a second.
  void OnTurn(MonoTime now) { last_turn_ = now; }

  // It has its part of the model, and the group is whole.
  bool is_ready() const { return last_turn_.load() != MonoTime(); }
  // Until it is ready a process that answers is alive: it waits for the others, or loads.
  bool IsAlive(MonoTime now) const;

  // GET /healthz and /readyz: 200 or 503.
  void Answer(const HttpRequest& request, HttpResponder& responder, MonoTime now) const;

 private:
  const Duration stall_limit_;
  std::atomic<MonoTime> last_turn_ = MonoTime();  // none yet
};

}  // namespace terrace
