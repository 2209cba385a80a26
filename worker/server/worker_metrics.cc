#include "worker/server/worker_metrics.h"

#include <algorithm>
#include <array>
#include <vector>

#include "base/version.h"

namespace terrace {
namespace {

using Labels = std::vector<std::string>;

// Label values, by the indices that Phase and Outcome give.
constexpr std::array kPhaseNames = {"prefill", "decode", "mixed"};
constexpr std::array kOutcomeNames = {"stop", "length", "cancelled", "deadline", "error", "refused"};
constexpr size_t kRefused = 5;

size_t Phase(const StepObservation& step) {
  if (step.decode_tokens == 0) return 0;
  return step.prefill_tokens == 0 ? 1 : 2;
}

size_t Outcome(const SequenceResult& result) {
  switch (result.reason) {
    case FinishReason::kStop:
      return 0;
    case FinishReason::kLength:
      return 1;
    case FinishReason::kCancelled:
      return result.error.code() == StatusCode::kDeadlineExceeded ? 3 : 2;
    case FinishReason::kError:
      break;
  }
  return 4;
}

}  // namespace

// Every series exists from the start: a rate over one that appears later misses its first events.
WorkerMetrics::WorkerMetrics() : numeric_errors_(registry_.GetCounter("terrace_numeric_errors_total")) {
  static_assert(kPhaseNames.size() == kPhases && kOutcomeNames.size() == kOutcomes);
  for (size_t i = 0; i < kPhases; ++i) {
    step_seconds_[i] = &registry_.GetHistogram("terrace_engine_step_seconds", Labels{kPhaseNames[i]});
    step_tokens_[i] = &registry_.GetHistogram("terrace_engine_step_tokens", Labels{kPhaseNames[i]});
  }
  for (size_t i = 0; i < kOutcomes; ++i) {
    sequences_[i] = &registry_.GetCounter("terrace_engine_sequences_total", Labels{kOutcomeNames[i]});
  }
  registry_.GetGauge("terrace_build_info", Labels{kVersion, "worker"}).Set(1);
}

void WorkerMetrics::OnStep(const StepObservation& step) {
  const size_t phase = Phase(step);
  step_seconds_[phase]->Observe(step.seconds);
  step_tokens_[phase]->Observe(step.prefill_tokens + step.decode_tokens);
}

void WorkerMetrics::OnFinished(const SequenceResult& result) {
  sequences_[Outcome(result)]->Add();
  if (Reason(result.error) == "numeric_error") numeric_errors_.Add();
}

void WorkerMetrics::OnRefused() { sequences_[kRefused]->Add(); }

void WorkerMetrics::OnLoaded(uint32_t block_tokens, uint32_t blocks, double load_seconds) {
  registry_.GetGauge("terrace_model_load_seconds").Set(load_seconds);
  const Labels shape{std::to_string(block_tokens), std::to_string(blocks), "f32"};
  registry_.GetGauge("terrace_kv_cache_info", shape).Set(1);
}

std::string WorkerMetrics::Render(const EngineStats& stats, MonoTime now) {
  SetFrom(stats, now);
  return registry_.Render();
}

void WorkerMetrics::SetFrom(const EngineStats& stats, MonoTime now) {
  registry_.GetGauge("terrace_engine_requests_running").Set(stats.running);
  registry_.GetGauge("terrace_engine_requests_waiting").Set(stats.waiting);
  registry_.GetGauge("terrace_engine_waiting_prompt_tokens").Set(stats.waiting_prompt_tokens);
  registry_.GetGauge("terrace_engine_last_step_age_seconds")
      .Set(stats.is_idle ? 0 : Seconds(now - stats.last_step));
  registry_.GetGauge("terrace_kv_blocks", Labels{"free"}).Set(stats.free_blocks);
  registry_.GetGauge("terrace_kv_blocks", Labels{"held"}).Set(stats.held_blocks);
  registry_.GetGauge("terrace_kv_cache_usage_ratio")
      .Set(static_cast<double>(stats.held_blocks) / std::max(stats.total_blocks, 1u));
  // Two scrapes at once may bring their snapshots out of order: totals only grow.
  std::lock_guard lock(mutex_);
  const uint64_t prompt = std::max(prompt_tokens_, stats.prompt_tokens);
  const uint64_t generated = std::max(generated_tokens_, stats.generated_tokens);
  registry_.GetCounter("terrace_engine_prompt_tokens_total")
      .Add(static_cast<double>(prompt - prompt_tokens_));
  registry_.GetCounter("terrace_engine_generation_tokens_total")
      .Add(static_cast<double>(generated - generated_tokens_));
  prompt_tokens_ = prompt;
  generated_tokens_ = generated;
}

}  // namespace terrace
