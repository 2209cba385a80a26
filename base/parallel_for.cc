#include "base/parallel_for.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "base/status.h"

namespace terrace {
namespace {

// About 10 us, then about 40 more in which a thread without a processor may have this one: longer than the
// gaps between the kernels of a step.
constexpr int kPauses = 300, kYields = 100;

template <typename Condition>
bool SpinUntil(const Condition& condition) {
  for (int i = 0; i < kPauses; ++i) {
    if (condition()) return true;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  for (int i = 0; i < kYields; ++i) {
    if (condition()) return true;
    std::this_thread::yield();
  }
  return condition();
}

// The first processor of the core that `processor` is a hardware thread of; itself where the system does not
// say.
size_t CoreOf(size_t processor) {
  std::ifstream file(Concat("/sys/devices/system/cpu/cpu", processor, "/topology/thread_siblings_list"));
  size_t first = processor;
  file >> first;
  return file ? first : processor;
}

// Those that this thread may use: one of each core, then their siblings.
std::vector<size_t> UsableProcessors() {
  cpu_set_t mask;
  std::vector<size_t> firsts, siblings;
  if (sched_getaffinity(0, sizeof(mask), &mask) != 0) return firsts;
  std::set<size_t> cores;
  for (size_t i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &mask)) (cores.insert(CoreOf(i)).second ? firsts : siblings).push_back(i);
  }
  firsts.insert(firsts.end(), siblings.begin(), siblings.end());
  return firsts;
}

void Pin(std::jthread& thread, size_t processor) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CPU_SET(processor, &mask);
  pthread_setaffinity_np(thread.native_handle(), sizeof(mask), &mask);
}

}  // namespace

ThreadPool::ThreadPool(size_t threads, bool pin) : shares_(std::make_unique<Share[]>(threads)) {
  CHECK(threads >= 1);
  const std::vector<size_t> processors = pin ? UsableProcessors() : std::vector<size_t>();
  for (size_t thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread](std::stop_token stop) { Work(stop, thread); });
    if (thread < processors.size()) Pin(workers_.back(), processors[thread]);
  }
}

ThreadPool::~ThreadPool() {
  for (auto& worker : workers_) worker.request_stop();
  for (auto& worker : workers_) worker.join();  // while `workers_` is whole: threads() counts them
}

void ThreadPool::ParallelFor(size_t count, size_t grain, const std::function<void(size_t, size_t)>& body) {
  if (workers_.empty() || count <= grain) {
    if (count > 0) body(0, count);
    return;
  }
  body_ = &body;
  count_ = count;
  grain_ = grain;
  done_slices_ = 0;
  const uint64_t generation = ++generation_;
  if (sleepers_ > 0) {
    { std::lock_guard lock(mutex_); }  // who is about to sleep does, and hears
    start_.notify_all();
  }
  RunSlices(0, generation);
  const auto is_done = [this] { return done_slices_ == threads() * kSlices; };
  if (SpinUntil(is_done)) return;
  std::unique_lock lock(mutex_);
  caller_sleeps_ = true;
  done_.wait(lock, is_done);
  caller_sleeps_ = false;
}

void ThreadPool::Work(std::stop_token stop, size_t thread) {
  for (uint64_t seen = 0;;) {
    const auto has_work = [&] { return generation_ != seen; };
    if (!SpinUntil(has_work)) {
      std::unique_lock lock(mutex_);
      ++sleepers_;
      const bool is_awake = start_.wait(lock, stop, has_work);
      --sleepers_;
      if (!is_awake) return;
    }
    seen = generation_;
    RunSlices(thread, seen);
    if (done_slices_ == threads() * kSlices && caller_sleeps_) {
      std::lock_guard lock(mutex_);
      done_.notify_one();
    }
  }
}

// Those of `thread`, then those of the others that nobody has taken.
void ThreadPool::RunSlices(size_t thread, uint64_t generation) {
  size_t ran = 0;
  for (size_t i = 0; i < threads(); ++i) {
    const size_t owner = (thread + i) % threads();
    for (size_t slice = 0; TakeSlice(owner, generation, slice); ++ran) {
      const size_t grains = (count_ + grain_ - 1) / grain_, owners = std::min(threads(), grains);
      if (owner >= owners) continue;
      const size_t first = grains * owner / owners, count = grains * (owner + 1) / owners - first;
      const size_t begin = (first + count * slice / kSlices) * grain_;
      const size_t end = std::min(count_, (first + count * (slice + 1) / kSlices) * grain_);
      if (begin < end) (*body_)(begin, end);
    }
  }
  if (ran > 0) done_slices_ += ran;
}

bool ThreadPool::TakeSlice(size_t owner, uint64_t generation, size_t& slice) {
  std::atomic<uint64_t>& taken = shares_[owner].taken;
  const uint64_t none = generation * kGenerationStep;
  uint64_t now = taken;
  do {
    if (now >= none + kSlices) return false;
    slice = now > none ? now - none : 0;
  } while (!taken.compare_exchange_weak(now, none + slice + 1));
  return true;
}

}  // namespace terrace
