#include "tools/bench/bench_time.h"

namespace terrace {

void RealBenchTime::WaitUntil(MonoTime deadline) {
  std::unique_lock lock(mutex_);
  woken_changed_.wait_until(lock, deadline, [this] { return is_woken_; });
  is_woken_ = false;
}

void RealBenchTime::Wake() {
  {
    std::lock_guard lock(mutex_);
    is_woken_ = true;
  }
  woken_changed_.notify_one();
}

}  // namespace terrace
