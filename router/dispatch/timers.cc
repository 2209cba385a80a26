#include "router/dispatch/timers.h"

#include <vector>

namespace terrace {

Timers::Id Timers::Add(MonoTime due, std::function<void()> function) {
  std::lock_guard lock(mutex_);
  const Id id = {due, ++last_id_};
  functions_.emplace(id, std::move(function));
  return id;
}

void Timers::Remove(const Id& id) {
  std::lock_guard lock(mutex_);
  functions_.erase(id);
}

void Timers::RunDue(MonoTime now) {
  std::vector<std::function<void()>> due;
  {
    std::lock_guard lock(mutex_);
    while (!functions_.empty() && functions_.begin()->first.first <= now) {
      due.push_back(std::move(functions_.begin()->second));
      functions_.erase(functions_.begin());
    }
  }
  for (const auto& function : due) function();
}

bool Timers::is_empty() const {
  std::lock_guard lock(mutex_);
  return functions_.empty();
}

}  // namespace terrace
