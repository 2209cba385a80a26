#include "router/server/text_pool.h"

#include <algorithm>
#include <utility>

namespace terrace {
namespace {
thread_local bool is_on_thread = false;
}

TextPool::TextPool(size_t threads, size_t max_waiting) : max_waiting_(max_waiting) {
  for (size_t i = 0; i < threads; ++i) {
    threads_.emplace_back([this](const std::stop_token& stop) { Run(stop); });
  }
}

TextPool::~TextPool() {
  for (std::jthread& thread : threads_) thread.request_stop();
}

bool TextPool::Post(const std::string& tenant, std::function<void()> task) {
  {
    std::lock_guard lock(mutex_);
    auto line = std::ranges::find(lines_, tenant, &Line::tenant);
    const bool is_new = line == lines_.end();
    const size_t tenants = lines_.size() + (is_new ? 1 : 0);
    const size_t own = is_new ? 0 : line->tasks.size();
    if (waiting_ >= max_waiting_ && own * tenants >= max_waiting_) return false;
    if (is_new) line = lines_.insert(lines_.end(), Line{.tenant = tenant, .tasks = {}});
    line->tasks.push_back(std::move(task));
    ++waiting_;
  }
  changed_.notify_one();
  return true;
}

void TextPool::SetMaxWaiting(size_t max_waiting) {
  std::lock_guard lock(mutex_);
  max_waiting_ = max_waiting;
}

size_t TextPool::size() const {
  std::lock_guard lock(mutex_);
  return waiting_ + running_;
}

bool TextPool::IsOnThread() { return is_on_thread; }

void TextPool::Run(const std::stop_token& stop) {
  is_on_thread = true;
  for (;;) {
    std::function<void()> task;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, stop, [this] { return waiting_ > 0; });
      if (waiting_ == 0) return;  // it was asked to stop
      task = TakeNext();
      ++running_;
    }
    task();
    task = nullptr;  // with what it holds
    std::lock_guard lock(mutex_);
    --running_;
  }
}

// With the lock. The tenant goes to the end of the lines.
std::function<void()> TextPool::TakeNext() {
  Line line = std::move(lines_.front());
  lines_.pop_front();
  std::function<void()> task = std::move(line.tasks.front());
  line.tasks.pop_front();
  --waiting_;
  if (!line.tasks.empty()) lines_.push_back(std::move(line));
  return task;
}

}  // namespace terrace
