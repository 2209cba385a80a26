// What the worker tells Prometheus (the table is base/metrics.cc). Thread-safe; never blocks for long.
#pragma once

#include <array>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include "base/metrics.h"
#include "worker/engine/engine.h"
#include "worker/engine/rank_group.h"

namespace terrace {

// Of the connection to a remote drafter. kRefused: the two do not fit.
enum class RemoteDrafterState : uint8_t { kConnecting, kConnected, kRefused };

// What became of tokens that a remote drafter sent. `offered`: they came in time. `late`: the answer had them
// already. `dropped`: it had gone on otherwise.
struct RemoteTokens {
  uint64_t offered = 0, late = 0, dropped = 0;
};

class WorkerMetrics {
 public:
  struct KvInfo {
    uint32_t block_tokens = 0, blocks = 0;
    std::string dtype;
  };

  WorkerMetrics();

  void OnStep(const StepObservation& step);
  void OnFinished(const SequenceResult& result);
  void OnRefused();
  void OnLoaded(const KvInfo& kv, double load_seconds);
  // No ranks: the model is this process's alone. `stages`: of the pipeline that they are.
  void OnGroup(std::span<const RankMemory> ranks, uint32_t stages);
  void OnRemoteDrafter(RemoteDrafterState state);
  void OnRemoteTokens(const RemoteTokens& tokens);
  // Of drafts for other workers: streams that there are now; tokens that were drafted.
  void OnServedStreams(size_t streams);
  void OnServedTokens(size_t tokens);

  // For parts of the process that count on their own.
  MetricRegistry& registry() { return registry_; }
  // The text of /metrics, with gauges and totals from `stats`.
  std::string Render(const EngineStats& stats, MonoTime now);

 private:
  static constexpr size_t kPhases = 3, kOutcomes = 7, kTotals = 8, kRemoteStates = 3, kRemoteResults = 3;

  void SetFrom(const EngineStats& stats, MonoTime now);
  void SetSpeculation(const SpeculationStats& stats);
  void Follow(std::string_view name, std::span<const std::string> labels, double total, double& told);

  MetricRegistry registry_;
  std::array<MetricRegistry::Histogram*, kPhases> step_seconds_, step_tokens_;  // the registry's
  MetricRegistry::Histogram &step_sequences_, &queue_seconds_, &first_token_seconds_, &inter_token_seconds_;
  std::array<MetricRegistry::Counter*, kOutcomes> sequences_;
  MetricRegistry::Counter &numeric_errors_, &served_tokens_;
  MetricRegistry::Gauge& served_streams_;
  std::array<MetricRegistry::Gauge*, kRemoteStates> remote_states_;
  std::array<MetricRegistry::Counter*, kRemoteResults> remote_tokens_;
  std::mutex mutex_;
  // GUARDED_BY(mutex_): the totals of the log and of the engine, as far as counted here.
  double told_dropped_lines_ = 0;
  std::array<double, kTotals> told_{};
  std::array<double, SpeculationStats::kPositions> told_proposed_{};
  double told_branch_proposed_ = 0;
  std::array<std::array<double, SpeculationStats::kPositions>, 2> told_speculation_{};  // accepted, rejected
  std::array<double, 2> told_branches_{};                                               // the same
  double told_passes_ = 0, told_drafting_seconds_ = 0, told_failures_ = 0;
};

}  // namespace terrace
