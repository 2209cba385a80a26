#include "router/cluster/event_loop.h"

#include <utility>

namespace terrace {

EventLoop::EventLoop() : thread_([this] { Run(); }) {}

EventLoop::~EventLoop() { Stop(); }

void EventLoop::Post(std::function<void()> function) { After(Duration(0), std::move(function)); }

void EventLoop::After(Duration delay, std::function<void()> function) {
  {
    std::lock_guard lock(mutex_);
    if (is_stopped_) return;
    due_.emplace(RealClock().Now() + delay, std::move(function));
  }
  changed_.notify_one();
}

void EventLoop::Stop() {
  {
    std::lock_guard lock(mutex_);
    is_stopped_ = true;
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
  due_.clear();  // the thread is gone and After adds nothing any more
}

void EventLoop::Run() {
  std::unique_lock lock(mutex_);
  while (!is_stopped_) {
    if (due_.empty()) {
      changed_.wait(lock);
      continue;
    }
    const MonoTime first = due_.begin()->first;
    if (RealClock().Now() < first) {
      changed_.wait_until(lock, first);
      continue;
    }
    auto function = std::move(due_.begin()->second);
    due_.erase(due_.begin());
    lock.unlock();
    function();
    function = nullptr;  // what it held may end here: not under the lock
    lock.lock();
  }
}

}  // namespace terrace
