// A lock of many readers and one writer whose waiters spin, as to be woken takes ten times as long as what it
// waits for: for what is held for some microseconds. Phase-fair: a reader waits for one change at most and a
// change for the readers that came before it, however many more come (Brandenburg and Anderson: Spin-Based
// Reader-Writer Synchronization for Multiprocessor Real-Time Systems). One thread writes.
#pragma once

#include <atomic>
#include <cstdint>

namespace terrace {

class PhaseFairMutex {
 public:
  void lock();  // the names that std::lock_guard and std::shared_lock look for
  void unlock();
  void lock_shared();
  void unlock_shared();

 private:
  static constexpr uint32_t kPhase = 1, kWriting = 2, kWriter = kPhase | kWriting, kReader = 4;
  std::atomic<uint32_t> entered_ = 0;  // kReader for each reader so far; who writes, and in which phase
  std::atomic<uint32_t> left_ = 0;     // kReader for each reader that is done
  uint32_t phase_ = 0;                 // of the last change: 0 and kPhase in turn. The writer's
};

}  // namespace terrace
