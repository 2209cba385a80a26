// A bounded multi-producer queue for one consumer thread. Push never blocks: a full queue is the caller's
// answer to its own caller (back-pressure), not a wait. Thread-safe.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <stop_token>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace terrace {

template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // False when the queue is full or closed; `item` is then left untouched.
  bool TryPush(T&& item) {
    {
      std::lock_guard lock(mutex_);
      if (closed_ || items_.size() >= capacity_) return false;
      items_.push_back(std::move(item));
    }
    ready_.notify_one();
    return true;
  }

  // Everything queued, in order of arrival. Blocks for up to `wait` (without one: for ever) until there is an
  // item, Wake() was called, the queue is closed, or stop is requested.
  std::vector<T> Drain(std::stop_token stop, std::optional<Duration> wait) {
    std::unique_lock lock(mutex_);
    const auto has_news = [this] { return !items_.empty() || closed_ || woken_; };
    if (!wait.has_value()) {
      ready_.wait(lock, std::move(stop), has_news);
    } else if (*wait > Duration(0)) {
      ready_.wait_for(lock, std::move(stop), *wait, has_news);
    }
    woken_ = false;
    return std::exchange(items_, {});
  }

  // Ends one waiting Drain (or the next one) early.
  void Wake() {
    {
      std::lock_guard lock(mutex_);
      woken_ = true;
    }
    ready_.notify_one();
  }

  // Refuses further items; a waiting Drain returns.
  void Close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    ready_.notify_all();
  }

  size_t size() const {
    std::lock_guard lock(mutex_);
    return items_.size();
  }
  size_t capacity() const { return capacity_; }

 private:
  const size_t capacity_;
  mutable std::mutex mutex_;
  std::condition_variable_any ready_;
  std::vector<T> items_;  // GUARDED_BY(mutex_)
  bool closed_ = false;   // GUARDED_BY(mutex_)
  bool woken_ = false;    // GUARDED_BY(mutex_)
};

}  // namespace terrace
