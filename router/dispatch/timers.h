// Functions that are to be called at a time. The housekeeper calls what is due, so each may be as late as its
// next round. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include "base/clock.h"

namespace terrace {

class Timers {
 public:
  using Id = std::pair<MonoTime, uint64_t>;

  // `function` is called once, by RunDue, unless it is removed before; it owns nothing that owns these
  // timers.
  Id Add(MonoTime due, std::function<void()> function);
  // It may be running: then it may end after this.
  void Remove(const Id& id);
  // Calls what is due at `now`, the earliest first, outside of the lock.
  void RunDue(MonoTime now);
  bool is_empty() const;

 private:
  mutable std::mutex mutex_;
  std::map<Id, std::function<void()>> functions_;  // GUARDED_BY(mutex_)
  uint64_t last_id_ = 0;                           // GUARDED_BY(mutex_)
};

}  // namespace terrace
