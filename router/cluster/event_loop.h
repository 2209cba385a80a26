// One thread that runs posted functions and timers, in order: the owner of the cluster's mutable state. Post
// and After may be called from any thread; Stop from the owner's, not from the loop.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "base/clock.h"

namespace terrace {

class EventLoop {
 public:
  EventLoop();
  ~EventLoop();  // Stop()

  // Callers bound what they post: each replica has at most one function per outstanding call in here.
  void Post(std::function<void()> function);
  void After(Duration delay, std::function<void()> function);
  // Joins the thread; what has not run by then never does. Idempotent.
  void Stop();

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::multimap<MonoTime, std::function<void()>> due_;  // GUARDED_BY(mutex_)
  bool is_stopped_ = false;                             // GUARDED_BY(mutex_)
  std::thread thread_;
};

}  // namespace terrace
