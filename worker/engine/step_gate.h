// Holds the loop thread of an engine at the beginning of each step until the test lets it go on. Thread-safe.
#pragma once

#include <condition_variable>
#include <mutex>

namespace terrace {

class StepGate {
 public:
  void Pass() {
    std::unique_lock lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return is_open_ || allowed_ > 0; });
    if (!is_open_) --allowed_;
  }
  void LetOneStep() {
    std::lock_guard lock(mutex_);
    ++allowed_;
    changed_.notify_all();
  }
  void Open() {
    std::lock_guard lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }
  void AwaitStep(int number) {  // until step `number` (from 1) has begun
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return arrived_ >= number; });
  }
  int steps() {
    std::lock_guard lock(mutex_);
    return arrived_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0, allowed_ = 0;  // GUARDED_BY(mutex_)
  bool is_open_ = false;           // GUARDED_BY(mutex_)
};

}  // namespace terrace
