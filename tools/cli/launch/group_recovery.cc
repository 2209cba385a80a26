#include "tools/cli/launch/group_recovery.h"

#include <algorithm>
#include <utility>

namespace terrace {

GroupRecovery::Action GroupRecovery::Next(size_t running, size_t members, MonoTime now) {
  if (running == members) {
    const bool is_late = is_forming() && Seconds(now - *forming_) > options_.ready_seconds;
    return is_late ? Action::kKillUnready : Action::kNone;
  }
  if (!broken_.has_value()) broken_ = now;
  if (running > 0) return Seconds(now - *broken_) < options_.end_seconds ? Action::kNone : Action::kKill;
  if (wait_seconds(now) > 0) return std::exchange(has_said_wait_, true) ? Action::kNone : Action::kWait;
  return Action::kStart;
}

void GroupRecovery::OnStarted(MonoTime now) {
  if (restarts_.size() == options_.most_restarts) restarts_.pop_front();
  restarts_.push_back(now);
  forming_ = now;
  broken_.reset();
  has_said_wait_ = false;
}

void GroupRecovery::OnStartFailed(MonoTime now) {
  restarts_.assign(options_.most_restarts, now);
  has_said_wait_ = true;  // whoever tells of the failure tells of the wait
}

double GroupRecovery::wait_seconds(MonoTime now) const {
  if (restarts_.size() < options_.most_restarts) return 0;
  return std::max(0.0, options_.window_seconds - Seconds(now - restarts_.front()));
}

}  // namespace terrace
