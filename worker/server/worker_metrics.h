// What the worker tells Prometheus (the table is base/metrics.cc). Thread-safe; never blocks for long.
#pragma once

#include <array>
#include <mutex>
#include <string>

#include "base/metrics.h"
#include "worker/engine/engine.h"

namespace terrace {

class WorkerMetrics {
 public:
  WorkerMetrics();

  void OnStep(const StepObservation& step);
  void OnFinished(const SequenceResult& result);
  void OnRefused();
  void OnLoaded(uint32_t block_tokens, uint32_t blocks, double load_seconds);

  // The text of /metrics, with gauges and totals from `stats`.
  std::string Render(const EngineStats& stats, MonoTime now);

 private:
  static constexpr size_t kPhases = 3, kOutcomes = 6;

  void SetFrom(const EngineStats& stats, MonoTime now);

  MetricRegistry registry_;
  std::array<MetricRegistry::Histogram*, kPhases> step_seconds_, step_tokens_;  // the registry's
  std::array<MetricRegistry::Counter*, kOutcomes> sequences_;
  MetricRegistry::Counter& numeric_errors_;
  std::mutex mutex_;
  uint64_t prompt_tokens_ = 0, generated_tokens_ = 0;  // GUARDED_BY(mutex_): totals told so far
};

}  // namespace terrace
