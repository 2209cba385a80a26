#include "worker/server/stop_engine.h"

#include "worker/server/worker_service.h"

namespace terrace {
namespace {

constexpr std::chrono::milliseconds kPoll(50);

}  // namespace

void StopEngine(Engine& engine, Duration stall_limit, const std::function<void(Duration)>& on_hang,
                const Clock& clock) {
  bool is_told = on_hang == nullptr;
  while (!engine.StopWithin(kPoll)) {
    const EngineStats stats = engine.Stats();
    const MonoTime now = clock.Now();
    if (is_told || !IsStalled(stats, now, stall_limit)) continue;
    is_told = true;
    on_hang(now - stats.last_step);
  }
}

}  // namespace terrace
