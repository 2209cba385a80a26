// Runs one worker of a plan in this process under a traffic.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "base/status.h"
#include "tools/bench/level_result.h"
#include "tools/plan/serving_simulation.h"
#include "worker/engine/open_engine.h"

namespace terrace {

struct WorkerRun {
  OpenEngineOptions engine = {};
  Traffic traffic = {};  // without a trace
  uint64_t warmup_requests = 0;
  std::function<bool()> is_interrupted = [] { return false; };
};

struct MeasuredWorker {
  LevelResult result = {};
  uint64_t allocated_bytes = 0;  // weights and KV pools, as the engine counts them
  // By which this process grew from before the engine was opened to behind the last request: what it touched
  // of those, and all else that serving takes. Absent on a device, and where the system does not tell.
  std::optional<uint64_t> resident_bytes = {};
};

// Errors of OpenLocalBenchTarget and of the workload; UNAVAILABLE when a request is not answered; CANCELLED.
StatusOr<MeasuredWorker> MeasureWorker(const WorkerRun& run);

}  // namespace terrace
