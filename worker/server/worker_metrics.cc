#include "worker/server/worker_metrics.h"

#include <algorithm>
#include <array>
#include <vector>

#include "base/log.h"
#include "base/version.h"

namespace terrace {
namespace {

using Labels = std::vector<std::string>;

// Label values, by the indices that Phase and Outcome give.
constexpr std::array kPhaseNames = {"prefill", "decode", "mixed"};
constexpr std::array kOutcomeNames = {"stop",  "length",      "cancelled", "deadline",
                                      "error", "handed_over", "refused"};
constexpr size_t kRefused = 6;
constexpr std::array kDrafterNames = {"ngram", "model", "remote"};
constexpr auto kPositionNames = SpeculationStats::kPositionNames;
constexpr std::array kVerdictNames = {"accepted", "rejected"};
constexpr std::array kRemoteStateNames = {"connecting", "connected", "refused"};  // by RemoteDrafterState
constexpr std::array kRemoteResultNames = {"offered", "late", "dropped"};

// Counters that follow totals of the engine.
struct FollowedTotal {
  std::string_view name;
  const char* label;  // null: none
  uint64_t SchedulerStats::*total;
};
constexpr std::array kFollowedTotals = {
    FollowedTotal{"terrace_engine_prompt_tokens_total", nullptr, &SchedulerStats::prompt_tokens},
    FollowedTotal{"terrace_engine_generation_tokens_total", nullptr, &SchedulerStats::generated_tokens},
    FollowedTotal{"terrace_engine_draft_tokens_total", "accepted", &SchedulerStats::accepted_draft_tokens},
    FollowedTotal{"terrace_engine_draft_tokens_total", "rejected", &SchedulerStats::rejected_draft_tokens},
    FollowedTotal{"terrace_engine_preemptions_total", "recompute", &SchedulerStats::recompute_preemptions},
    FollowedTotal{"terrace_engine_preemptions_total", "swap", &SchedulerStats::swap_preemptions},
    FollowedTotal{"terrace_prefix_cache_query_tokens_total", nullptr, &SchedulerStats::prefix_query_tokens},
    FollowedTotal{"terrace_prefix_cache_hit_tokens_total", nullptr, &SchedulerStats::prefix_hit_tokens},
};

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
      if (result.error.code() == StatusCode::kUnavailable) return 5;
      return result.error.code() == StatusCode::kDeadlineExceeded ? 3 : 2;
    case FinishReason::kError:
      break;
  }
  return 4;
}

}  // namespace

// Every series exists from the start: a rate over one that appears later misses its first events.
WorkerMetrics::WorkerMetrics()
    : step_sequences_(registry_.GetHistogram("terrace_engine_step_sequences")),
      queue_seconds_(registry_.GetHistogram("terrace_engine_queue_seconds")),
      first_token_seconds_(registry_.GetHistogram("terrace_engine_time_to_first_token_seconds")),
      inter_token_seconds_(registry_.GetHistogram("terrace_engine_inter_token_latency_seconds")),
      numeric_errors_(registry_.GetCounter("terrace_numeric_errors_total")),
      served_tokens_(registry_.GetCounter("terrace_speculation_served_tokens_total")),
      served_streams_(registry_.GetGauge("terrace_speculation_served_streams")) {
  static_assert(kPhaseNames.size() == kPhases && kOutcomeNames.size() == kOutcomes);
  static_assert(kFollowedTotals.size() == kTotals);
  static_assert(kRemoteStateNames.size() == kRemoteStates && kRemoteResultNames.size() == kRemoteResults);
  for (size_t i = 0; i < kPhases; ++i) {
    step_seconds_[i] = &registry_.GetHistogram("terrace_engine_step_seconds", Labels{kPhaseNames[i]});
    step_tokens_[i] = &registry_.GetHistogram("terrace_engine_step_tokens", Labels{kPhaseNames[i]});
  }
  for (size_t i = 0; i < kOutcomes; ++i) {
    sequences_[i] = &registry_.GetCounter("terrace_engine_sequences_total", Labels{kOutcomeNames[i]});
  }
  for (const char* const drafter : kDrafterNames) {
    for (const char* const position : kPositionNames) {
      registry_.GetCounter("terrace_speculation_proposed_tokens_total", Labels{drafter, position});
      for (const char* const verdict : kVerdictNames)
        registry_.GetCounter("terrace_speculation_tokens_total", Labels{drafter, position, verdict});
    }
    registry_.GetCounter("terrace_speculation_branch_proposed_tokens_total", Labels{drafter});
    for (const char* verdict : kVerdictNames)
      registry_.GetCounter("terrace_speculation_branch_tokens_total", Labels{drafter, verdict});
    registry_.GetCounter("terrace_speculation_passes_total", Labels{drafter});
    registry_.GetCounter("terrace_speculation_drafting_seconds_total", Labels{drafter});
    registry_.GetCounter("terrace_speculation_failures_total", Labels{drafter});
    registry_.GetGauge("terrace_speculation_saved_seconds", Labels{drafter}).Set(0);
  }
  for (size_t i = 0; i < kRemoteStates; ++i)
    remote_states_[i] = &registry_.GetGauge("terrace_speculation_remote_state", Labels{kRemoteStateNames[i]});
  for (size_t i = 0; i < kRemoteResults; ++i)
    remote_tokens_[i] =
        &registry_.GetCounter("terrace_speculation_remote_tokens_total", Labels{kRemoteResultNames[i]});
  for (auto* const state : remote_states_) state->Set(0);
  served_streams_.Set(0);
  registry_.GetGauge("terrace_build_info", Labels{kVersion, "worker"}).Set(1);
}

void WorkerMetrics::OnStep(const StepObservation& step) {
  const size_t phase = Phase(step);
  step_seconds_[phase]->Observe(step.seconds);
  step_tokens_[phase]->Observe(step.prefill_tokens + step.decode_tokens + step.draft_tokens);
  step_sequences_.Observe(step.sequences);
  for (const double seconds : step.latencies.queue) queue_seconds_.Observe(seconds);
  for (const double seconds : step.latencies.first_token) first_token_seconds_.Observe(seconds);
  for (const double seconds : step.latencies.inter_token) inter_token_seconds_.Observe(seconds);
}

void WorkerMetrics::OnFinished(const SequenceResult& result) {
  sequences_[Outcome(result)]->Add();
  if (Reason(result.error) == "numeric_error") numeric_errors_.Add();
}

void WorkerMetrics::OnRefused() { sequences_[kRefused]->Add(); }

void WorkerMetrics::OnLoaded(const KvInfo& kv, double load_seconds) {
  registry_.GetGauge("terrace_model_load_seconds").Set(load_seconds);
  const Labels shape{std::to_string(kv.block_tokens), std::to_string(kv.blocks), kv.dtype};
  registry_.GetGauge("terrace_kv_cache_info", shape).Set(1);
}

void WorkerMetrics::OnGroup(std::span<const RankMemory> ranks, uint32_t stages) {
  const size_t count = std::max<size_t>(ranks.size(), 1);
  registry_.GetGauge("terrace_group_ranks").Set(static_cast<double>(count));
  const auto set_degree = [this](const char* kind, size_t degree) {
    registry_.GetGauge("terrace_group_parallel_degree", Labels{kind}).Set(static_cast<double>(degree));
  };
  set_degree("tensor", count / stages);
  set_degree("pipeline", stages);
  for (size_t i = 0; i < ranks.size(); ++i) {
    const auto set = [rank = std::to_string(i), this](const char* kind, uint64_t bytes) {
      registry_.GetGauge("terrace_group_rank_memory_bytes", Labels{rank, kind})
          .Set(static_cast<double>(bytes));
    };
    set("weights", ranks[i].weight_bytes);
    set("kv", ranks[i].kv_bytes);
  }
}

void WorkerMetrics::OnRemoteDrafter(RemoteDrafterState state) {
  for (size_t i = 0; i < kRemoteStates; ++i) remote_states_[i]->Set(i == static_cast<size_t>(state) ? 1 : 0);
}

void WorkerMetrics::OnRemoteTokens(const RemoteTokens& tokens) {
  const std::array counts = {tokens.offered, tokens.late, tokens.dropped};
  for (size_t i = 0; i < kRemoteResults; ++i)
    if (counts[i] > 0) remote_tokens_[i]->Add(static_cast<double>(counts[i]));
}

void WorkerMetrics::OnServedStreams(size_t streams) { served_streams_.Set(static_cast<double>(streams)); }

void WorkerMetrics::OnServedTokens(size_t tokens) { served_tokens_.Add(static_cast<double>(tokens)); }

std::string WorkerMetrics::Render(const EngineStats& stats, MonoTime now) {
  SetFrom(stats, now);
  return registry_.Render();
}

void WorkerMetrics::SetFrom(const EngineStats& stats, MonoTime now) {
  registry_.GetGauge("terrace_engine_requests_running").Set(stats.running);
  registry_.GetGauge("terrace_engine_requests_waiting").Set(stats.waiting);
  registry_.GetGauge("terrace_engine_requests_paused").Set(stats.paused);
  registry_.GetGauge("terrace_engine_waiting_prompt_tokens").Set(stats.waiting_prompt_tokens);
  registry_.GetGauge("terrace_engine_last_step_age_seconds")
      .Set(stats.is_idle ? 0 : Seconds(now - stats.last_step));
  registry_.GetGauge("terrace_kv_blocks", Labels{"free"}).Set(stats.free_blocks);
  registry_.GetGauge("terrace_kv_blocks", Labels{"held"}).Set(stats.held_blocks);
  registry_.GetGauge("terrace_kv_blocks", Labels{"cached"}).Set(stats.cached_blocks);
  registry_.GetGauge("terrace_kv_host_blocks", Labels{"free"}).Set(stats.host_blocks - stats.swapped_blocks);
  registry_.GetGauge("terrace_kv_host_blocks", Labels{"held"}).Set(stats.swapped_blocks);
  registry_.GetGauge("terrace_kv_cache_usage_ratio")
      .Set(static_cast<double>(stats.held_blocks) / std::max(stats.total_blocks, 1u));
  std::lock_guard lock(mutex_);
  Follow("terrace_log_dropped_total", Labels{}, static_cast<double>(DroppedLogLines()), told_dropped_lines_);
  for (size_t i = 0; i < kTotals; ++i) {
    const FollowedTotal& followed = kFollowedTotals[i];
    const Labels labels = followed.label == nullptr ? Labels{} : Labels{followed.label};
    Follow(followed.name, labels, static_cast<double>(stats.*followed.total), told_[i]);
  }
  if (!stats.speculation.drafter.empty()) SetSpeculation(stats.speculation);
}

void WorkerMetrics::SetSpeculation(const SpeculationStats& stats) {
  const std::string drafter(stats.drafter);
  for (size_t i = 0; i < SpeculationStats::kPositions; ++i) {
    Follow("terrace_speculation_proposed_tokens_total", Labels{drafter, kPositionNames[i]},
           static_cast<double>(stats.proposed[i]), told_proposed_[i]);
    const uint64_t totals[] = {stats.accepted[i], stats.verified[i] - stats.accepted[i]};
    for (size_t verdict = 0; verdict < kVerdictNames.size(); ++verdict) {
      Follow("terrace_speculation_tokens_total", Labels{drafter, kPositionNames[i], kVerdictNames[verdict]},
             static_cast<double>(totals[verdict]), told_speculation_[verdict][i]);
    }
  }
  const Labels labels{drafter};
  Follow("terrace_speculation_branch_proposed_tokens_total", labels,
         static_cast<double>(stats.branch_proposed), told_branch_proposed_);
  const uint64_t branches[] = {stats.branch_accepted, stats.branch_verified - stats.branch_accepted};
  for (size_t verdict = 0; verdict < kVerdictNames.size(); ++verdict) {
    Follow("terrace_speculation_branch_tokens_total", Labels{drafter, kVerdictNames[verdict]},
           static_cast<double>(branches[verdict]), told_branches_[verdict]);
  }
  Follow("terrace_speculation_passes_total", labels, static_cast<double>(stats.passes), told_passes_);
  Follow("terrace_speculation_drafting_seconds_total", labels, stats.drafting_seconds,
         told_drafting_seconds_);
  Follow("terrace_speculation_failures_total", labels, static_cast<double>(stats.failures), told_failures_);
  registry_.GetGauge("terrace_speculation_saved_seconds", labels).Set(stats.saved_seconds);
}

// Two scrapes at once may bring their snapshots out of order: totals only grow.
void WorkerMetrics::Follow(std::string_view name, std::span<const std::string> labels, double total,
                           double& told) {
  total = std::max(told, total);
  registry_.GetCounter(name, labels).Add(total - told);
  told = total;
}

}  // namespace terrace
