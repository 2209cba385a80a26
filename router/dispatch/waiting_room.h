// Answers that were cut off and have no replica to go on at, and suspects (poison.h) that are to be kept
// apart from others. They hold their places in the admission, which bounds how many there are. Thread-safe.
#pragma once

#include <functional>
#include <mutex>
#include <utility>
#include <vector>

namespace terrace {

class WaitingRoom {
 public:
  // `retry` is called once, by WakeAll; it keeps alive whom it calls.
  void Add(std::function<void()> retry) {
    std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(retry));
  }
  // Everyone tries again, and may come back.
  void WakeAll() {
    std::vector<std::function<void()>> woken;
    {
      std::lock_guard lock(mutex_);
      woken.swap(waiting_);
    }
    for (const auto& retry : woken) retry();
  }

 private:
  std::mutex mutex_;
  std::vector<std::function<void()>> waiting_;  // GUARDED_BY(mutex_)
};

}  // namespace terrace
