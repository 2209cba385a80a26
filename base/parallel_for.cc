#include "base/parallel_for.h"

#include <algorithm>

#include "base/status.h"

namespace terrace {

ThreadPool::ThreadPool(size_t threads) {
  CHECK(threads >= 1);
  for (size_t part = 1; part < threads; ++part) {
    workers_.emplace_back([this, part](std::stop_token stop) { Work(stop, part); });
  }
}

ThreadPool::~ThreadPool() {
  for (auto& worker : workers_) worker.request_stop();
}

void ThreadPool::ParallelFor(size_t count, size_t grain, const std::function<void(size_t, size_t)>& body) {
  const size_t grains = (count + grain - 1) / grain;
  const size_t part_size = (grains + threads() - 1) / threads() * grain;
  if (workers_.empty() || part_size >= count) {
    if (count > 0) body(0, count);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    body_ = &body;
    count_ = count;
    part_size_ = part_size;
    pending_ = workers_.size();
    ++generation_;
  }
  start_.notify_all();
  RunPart(0);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return pending_ == 0; });
}

void ThreadPool::Work(std::stop_token stop, size_t part) {
  size_t seen = 0;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      if (!start_.wait(lock, stop, [&] { return generation_ != seen; })) return;
      seen = generation_;
    }
    RunPart(part);
    std::lock_guard lock(mutex_);
    if (--pending_ == 0) done_.notify_one();
  }
}

void ThreadPool::RunPart(size_t part) {
  const size_t begin = part * part_size_;
  if (begin < count_) (*body_)(begin, std::min(count_, begin + part_size_));
}

}  // namespace terrace
