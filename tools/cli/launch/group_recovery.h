// What becomes of a group of ranks that `terrace up` started: whole again when it broke, and its processes
// killed when they do not end, or when a group that was started again does not become ready. Decides only;
// time is an argument. Owned by the LocalCluster, whose thread uses it.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>

#include "base/clock.h"

namespace terrace {

class GroupRecovery {
 public:
  struct Options {
    // For how long the processes of a broken group may take to end, which they do once they miss each other.
    double end_seconds = 10;
    double ready_seconds = 120;  // that a group which was started again may take to be ready
    // A group that breaks more often waits until the first of these restarts is window_seconds ago.
    size_t most_restarts = 5;
    double window_seconds = 600;
  };
  enum class Action {
    kNone,
    kKill,         // those that run: they had the time to end
    kKillUnready,  // all of them: they had the time to become ready
    kStart,        // all of them; OnStarted or OnStartFailed follows
    kWait,         // nothing, for wait_seconds; said once for each wait
  };

  explicit GroupRecovery(const Options& options) : options_(options) {}

  // With `running` of the group's `members` processes.
  Action Next(size_t running, size_t members, MonoTime now);
  void OnStarted(MonoTime now);
  void OnStartFailed(MonoTime now);  // what hinders a start may last: it waits for a whole window
  void OnReady() { forming_.reset(); }

  // It was started again, and is not ready yet.
  bool is_forming() const { return forming_.has_value() && !broken_.has_value(); }
  bool is_broken() const { return broken_.has_value(); }
  // For how long a group that is broken now stays so; 0: it is started once all of its processes have ended.
  double wait_seconds(MonoTime now) const;

 private:
  const Options options_;
  std::optional<MonoTime> broken_;   // since when
  std::optional<MonoTime> forming_;  // since when
  std::deque<MonoTime> restarts_;    // the latest, up to most_restarts
  bool has_said_wait_ = false;
};

}  // namespace terrace
