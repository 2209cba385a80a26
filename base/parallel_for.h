// A small fork-join pool for compute kernels. One owner thread calls ParallelFor; which thread computes which
// indices never changes the result of a kernel that writes disjoint outputs.
//
// Kernels follow each other within microseconds, and waking a sleeping thread takes tens of them: who waits
// spins for a moment before it sleeps. An idle pool uses no processor. On a machine with other work a thread
// may lose its processor for milliseconds: each thread has its share, for its caches' sake, but in slices,
// and who is done takes slices of the others. So nobody waits for a thread that has not begun.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

namespace terrace {

class ThreadPool {
 public:
  // `threads` counts the caller too; 1 makes no thread at all. At least 1. With `pin` each made thread stays
  // on a processor of its own, of those the caller may use: one of each core first, then their siblings. The
  // first is left to the caller, who is not pinned; threads beyond the last stay free.
  explicit ThreadPool(size_t threads, bool pin = false);
  ~ThreadPool();

  // Calls body(begin, end) on disjoint half-open ranges that cover [0, count), each a multiple of `grain`
  // long but the last. Returns when all are done. Not reentrant; one caller at a time.
  void ParallelFor(size_t count, size_t grain, const std::function<void(size_t begin, size_t end)>& body);

  size_t threads() const { return workers_.size() + 1; }

 private:
  static constexpr size_t kSlices = 4;  // of a thread's share
  static constexpr uint64_t kGenerationStep = 8;
  struct alignas(64) Share {
    // kGenerationStep * generation + slices taken in it. Every slice of a generation is taken before it ends,
    // so a thread that comes late finds none.
    std::atomic<uint64_t> taken = 0;
  };

  void Work(std::stop_token stop, size_t thread);
  void RunSlices(size_t thread, uint64_t generation);
  bool TakeSlice(size_t owner, uint64_t generation, size_t& slice);

  std::unique_ptr<Share[]> shares_;       // of each thread
  std::atomic<uint64_t> generation_ = 0;  // +1 per call that is shared out: publishes the next three
  const std::function<void(size_t, size_t)>* body_ = nullptr;
  size_t count_ = 0, grain_ = 0;
  std::atomic<size_t> done_slices_ = 0;  // of this generation

  // Who sleeps says so before it looks once more, and who has news looks at that after: one of them sees.
  std::atomic<size_t> sleepers_ = 0;  // workers
  std::atomic<bool> caller_sleeps_ = false;
  std::mutex mutex_;
  std::condition_variable_any start_, done_;
  std::vector<std::jthread> workers_;  // last: joins before what it uses dies
};

}  // namespace terrace
