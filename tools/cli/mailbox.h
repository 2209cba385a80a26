// Hands what other threads report to the one that waits for it. Bounded by its users: each has a fixed number
// of calls in flight, and each call a bounded answer. Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace terrace {

template <typename T>
class Mailbox {
 public:
  void Push(T item) {
    {
      std::lock_guard lock(mutex_);
      items_.push_back(std::move(item));
    }
    ready_.notify_one();
  }

  // The oldest item, waiting up to `seconds` for one.
  std::optional<T> Pop(double seconds) {
    std::unique_lock lock(mutex_);
    if (!ready_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return !items_.empty(); })) {
      return std::nullopt;
    }
    std::optional<T> item = std::move(items_.front());
    items_.pop_front();
    return item;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<T> items_;  // GUARDED_BY(mutex_)
};

}  // namespace terrace
