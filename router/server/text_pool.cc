#include "router/server/text_pool.h"

#include <utility>

namespace terrace {

TextPool::TextPool(size_t threads, size_t max_waiting) : max_waiting_(max_waiting) {
  for (size_t i = 0; i < threads; ++i) {
    threads_.emplace_back([this](const std::stop_token& stop) { Run(stop); });
  }
}

TextPool::~TextPool() {
  for (std::jthread& thread : threads_) thread.request_stop();
}

bool TextPool::Post(std::function<void()> task) {
  {
    std::lock_guard lock(mutex_);
    if (tasks_.size() >= max_waiting_) return false;
    tasks_.push_back(std::move(task));
  }
  changed_.notify_one();
  return true;
}

size_t TextPool::size() const {
  std::lock_guard lock(mutex_);
  return tasks_.size() + running_;
}

void TextPool::Run(const std::stop_token& stop) {
  for (;;) {
    std::function<void()> task;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, stop, [this] { return !tasks_.empty(); });
      if (tasks_.empty()) return;  // it was asked to stop
      task = std::move(tasks_.front());
      tasks_.pop_front();
      ++running_;
    }
    task();
    task = nullptr;  // with what it holds
    std::lock_guard lock(mutex_);
    --running_;
  }
}

}  // namespace terrace
