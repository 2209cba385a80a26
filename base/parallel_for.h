// A small fork-join pool for compute kernels. One owner thread calls ParallelFor; the pool's threads and the
// caller share the work by static partition, so which index runs where never changes the result of a kernel
// that writes disjoint outputs.
//
// Kernels follow each other within microseconds, and waking a sleeping thread takes tens of them: who waits
// spins for a moment before it sleeps. An idle pool uses no processor.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

namespace terrace {

class ThreadPool {
 public:
  // `threads` counts the caller too; 1 makes no thread at all. At least 1.
  explicit ThreadPool(size_t threads);
  ~ThreadPool();

  // Calls body(begin, end) on disjoint half-open ranges that cover [0, count), at most one per thread, each a
  // multiple of `grain` long but the last. Returns when all are done. Not reentrant; one caller at a time.
  void ParallelFor(size_t count, size_t grain, const std::function<void(size_t begin, size_t end)>& body);

  size_t threads() const { return workers_.size() + 1; }

 private:
  void Work(std::stop_token stop, size_t part);
  void RunPart(size_t part);

  std::atomic<size_t> generation_ = 0;  // +1 per ParallelFor: publishes the three below to the workers
  std::atomic<size_t> pending_ = 0;     // workers still busy in this generation
  const std::function<void(size_t, size_t)>* body_ = nullptr;
  size_t count_ = 0, part_size_ = 0;

  // Who sleeps says so before it looks once more, and who has news looks at that after: one of them sees.
  std::atomic<size_t> sleepers_ = 0;  // workers
  std::atomic<bool> caller_sleeps_ = false;
  std::mutex mutex_;
  std::condition_variable_any start_, done_;
  std::vector<std::jthread> workers_;  // last: joins before what it uses dies
};

}  // namespace terrace
