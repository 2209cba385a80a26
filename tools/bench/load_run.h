// Runs one level of load against a target, on the caller's thread: sends what is due, gathers what ended.
//
// A closed loop keeps `concurrency` requests under way; a place whose request failed rests for a moment, so
// that a dead target is not asked in a spin. An open loop sends when its arrivals say, never waits for
// answers, and drops (and counts) what would exceed max_in_flight.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "tools/bench/bench_settings.h"
#include "tools/bench/bench_target.h"
#include "tools/bench/bench_time.h"
#include "tools/bench/level_result.h"
#include "tools/bench/workload.h"

namespace terrace {

inline constexpr Duration kRestAfterFailure = std::chrono::milliseconds(100);
// How long an interrupted run waits for its cancelled requests to end.
inline constexpr Duration kInterruptGrace = std::chrono::seconds(5);

struct LoadProgress {
  double share = 0;   // done, of the level
  uint64_t done = 0;  // requests
  uint64_t tokens = 0;
  double seconds = 0;  // since the start
};

struct LoadHooks {
  std::function<bool()> is_interrupted = [] { return false; };
  std::function<void(const LoadProgress&)> on_progress = [](const LoadProgress&) {};
};

// One level, or its warm-up, of a benchmark.
struct LoadPart {
  uint32_t level = 0;
  bool is_warmup = false;
};

// `target` and `workload` outlive the call. Hooks are called from this thread, at least every 50 ms.
LevelResult RunLoad(BenchTarget& target, const Workload& workload, const BenchSettings& settings,
                    LoadPart part, const std::shared_ptr<BenchTime>& time, const LoadHooks& hooks = {});

}  // namespace terrace
