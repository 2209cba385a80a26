#include "base/parallel_for.h"

#include <algorithm>

#include "base/status.h"

namespace terrace {
namespace {

// About 50 us: longer than the gaps between the kernels of a step.
constexpr int kSpins = 1500;

template <typename Condition>
bool SpinUntil(const Condition& condition) {
  for (int i = 0; i < kSpins; ++i) {
    if (condition()) return true;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  return condition();
}

}  // namespace

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
  body_ = &body;
  count_ = count;
  part_size_ = part_size;
  pending_ = workers_.size();
  ++generation_;
  if (sleepers_ > 0) {
    std::lock_guard lock(mutex_);
    start_.notify_all();
  }
  RunPart(0);
  const auto is_done = [this] { return pending_ == 0; };
  if (SpinUntil(is_done)) return;
  std::unique_lock lock(mutex_);
  caller_sleeps_ = true;
  done_.wait(lock, is_done);
  caller_sleeps_ = false;
}

void ThreadPool::Work(std::stop_token stop, size_t part) {
  for (size_t seen = 0;; ++seen) {
    const auto has_work = [&] { return generation_ != seen; };
    if (!SpinUntil(has_work)) {
      std::unique_lock lock(mutex_);
      ++sleepers_;
      const bool is_awake = start_.wait(lock, stop, has_work);
      --sleepers_;
      if (!is_awake) return;
    }
    RunPart(part);
    if (--pending_ == 0 && caller_sleeps_) {
      std::lock_guard lock(mutex_);
      done_.notify_one();
    }
  }
}

void ThreadPool::RunPart(size_t part) {
  const size_t begin = part * part_size_;
  if (begin < count_) (*body_)(begin, std::min(count_, begin + part_size_));
}

}  // namespace terrace
