// The requests that a dispatcher is at, so that all of them can be ended when the router's time is over.
// Thread-safe.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace terrace {

class RunningRequests {
 public:
  using Cancel = std::function<void()>;  // any thread; nothing when the work is over

  // `cancel` ends the work that has begun; at once, when EndAll has been called.
  void Add(std::weak_ptr<const void> work, Cancel cancel) {
    {
      std::lock_guard lock(mutex_);
      if (!has_ended_) return entries_.push_back({std::move(work), std::move(cancel)});
    }
    cancel();
  }
  void EndAll() {
    std::vector<Entry> entries;
    {
      std::lock_guard lock(mutex_);
      has_ended_ = true;
      entries.swap(entries_);
    }
    for (const Entry& entry : entries) entry.cancel();
  }
  bool has_ended() const { return has_ended_; }
  // To be called a few times a second: what is over is kept until then.
  void ForgetOver() {
    std::lock_guard lock(mutex_);
    std::erase_if(entries_, [](const Entry& entry) { return entry.work.expired(); });
  }

 private:
  struct Entry {
    std::weak_ptr<const void> work = {};
    Cancel cancel = {};
  };

  std::atomic<bool> has_ended_ = false;  // written with mutex_
  std::mutex mutex_;
  std::vector<Entry> entries_;  // GUARDED_BY(mutex_)
};

}  // namespace terrace
