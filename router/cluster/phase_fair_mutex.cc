#include "router/cluster/phase_fair_mutex.h"

#include <thread>

namespace terrace {
namespace {

// Longer than the lock is ever held, about 10 us; after that, whoever holds it may need this processor.
constexpr int kPauses = 300;

template <typename Condition>
void SpinUntil(const Condition& condition) {
  for (int i = 0; !condition(); ++i) {
    if (i >= kPauses) {
      std::this_thread::yield();
      continue;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

}  // namespace

void PhaseFairMutex::lock() {
  phase_ ^= kPhase;
  // The readers from now on wait for this change: those that waited for the last one see another phase.
  const uint32_t before = entered_.fetch_add(kWriting | phase_, std::memory_order_acquire);
  SpinUntil([&] { return left_.load(std::memory_order_acquire) == before; });
}

void PhaseFairMutex::unlock() { entered_.fetch_and(~kWriter, std::memory_order_release); }

void PhaseFairMutex::lock_shared() {
  const uint32_t writer = entered_.fetch_add(kReader, std::memory_order_acquire) & kWriter;
  if (writer == 0) return;
  SpinUntil([&] { return (entered_.load(std::memory_order_acquire) & kWriter) != writer; });
}

void PhaseFairMutex::unlock_shared() { left_.fetch_add(kReader, std::memory_order_release); }

}  // namespace terrace
