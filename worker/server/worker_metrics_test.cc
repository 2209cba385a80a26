#include "worker/server/worker_metrics.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

// Everything of one worker is there before anything happened, but for what is known once it is loaded.
TEST(WorkerMetrics, EverySeriesExistsFromTheStart) {
  WorkerMetrics metrics;
  metrics.OnLoaded({.block_tokens = 16, .blocks = 4, .dtype = "f16"}, /*load_seconds=*/1);
  const std::string text = metrics.Render({}, {});
  for (const MetricInfo& info : AllMetrics()) {
    const bool is_workers =
        info.name.starts_with("terrace_engine_") || info.name.starts_with("terrace_kv_") ||
        info.name.starts_with("terrace_speculation_") || info.name.starts_with("terrace_prefix_cache_");
    if (!is_workers) continue;
    EXPECT_THAT(text, HasSubstr(Concat("\n# TYPE ", info.name, " "))) << info.name;
  }
  for (const char* series : {"terrace_engine_preemptions_total{mode=\"recompute\"} 0\n",
                             "terrace_engine_draft_tokens_total{result=\"accepted\"} 0\n",
                             "terrace_engine_draft_tokens_total{result=\"rejected\"} 0\n",
                             "terrace_speculation_passes_total{drafter=\"ngram\"} 0\n",
                             "terrace_speculation_passes_total{drafter=\"remote\"} 0\n",
                             "terrace_speculation_remote_state{state=\"connected\"} 0\n",
                             "terrace_speculation_remote_tokens_total{result=\"late\"} 0\n",
                             "terrace_speculation_served_streams 0\n",
                             "terrace_speculation_served_tokens_total 0\n",
                             "terrace_engine_sequences_total{outcome=\"handed_over\"} 0\n",
                             "terrace_engine_preemptions_total{mode=\"swap\"} 0\n",
                             "terrace_kv_blocks{state=\"free\"} 0\n",
                             "terrace_kv_blocks{state=\"held\"} 0\n",
                             "terrace_kv_blocks{state=\"cached\"} 0\n",
                             "terrace_kv_host_blocks{state=\"free\"} 0\n",
                             "terrace_kv_host_blocks{state=\"held\"} 0\n",
                             "terrace_engine_step_sequences_count 0\n",
                             "terrace_engine_queue_seconds_count 0\n",
                             "terrace_engine_time_to_first_token_seconds_count 0\n",
                             "terrace_engine_inter_token_latency_seconds_count 0\n"}) {
    EXPECT_THAT(text, HasSubstr(series));
  }
}

TEST(WorkerMetrics, AGroupTellsItsDegreesAndTheMemoryOfItsRanks) {
  WorkerMetrics alone;
  alone.OnGroup({}, /*stages=*/1);
  EXPECT_THAT(alone.Render({}, {}), HasSubstr("terrace_group_ranks 1\n"));
  EXPECT_THAT(alone.Render({}, {}), HasSubstr("terrace_group_parallel_degree{kind=\"pipeline\"} 1\n"));
  WorkerMetrics metrics;
  const RankMemory ranks[] = {{.weight_bytes = 10, .kv_bytes = 20}, {.weight_bytes = 11, .kv_bytes = 21}};
  metrics.OnGroup(ranks, /*stages=*/2);
  const std::string text = metrics.Render({}, {});
  EXPECT_THAT(text, HasSubstr("terrace_group_ranks 2\n"));
  EXPECT_THAT(text, HasSubstr("terrace_group_parallel_degree{kind=\"tensor\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("terrace_group_parallel_degree{kind=\"pipeline\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("terrace_group_rank_memory_bytes{kind=\"weights\",rank=\"0\"} 10\n"));
  EXPECT_THAT(text, HasSubstr("terrace_group_rank_memory_bytes{kind=\"kv\",rank=\"1\"} 21\n"));
}

TEST(WorkerMetrics, GaugesAndTotalsAreTheEngines) {
  WorkerMetrics metrics;
  EngineStats stats;
  stats.running = 3, stats.paused = 1, stats.waiting = 2;
  stats.free_blocks = 5, stats.held_blocks = 4, stats.cached_blocks = 7, stats.total_blocks = 16;
  stats.host_blocks = 10, stats.swapped_blocks = 6;
  stats.recompute_preemptions = 8, stats.swap_preemptions = 9;
  stats.accepted_draft_tokens = 11, stats.rejected_draft_tokens = 12;
  stats.prefix_query_tokens = 100, stats.prefix_hit_tokens = 60;
  metrics.Render(stats, {});
  const std::string text = metrics.Render(stats, {});  // what was told is not told twice
  for (const char* series :
       {"terrace_engine_requests_running 3\n", "terrace_engine_requests_paused 1\n",
        "terrace_engine_requests_waiting 2\n", "terrace_kv_blocks{state=\"free\"} 5\n",
        "terrace_kv_blocks{state=\"held\"} 4\n", "terrace_kv_blocks{state=\"cached\"} 7\n",
        "terrace_kv_cache_usage_ratio 0.25\n", "terrace_kv_host_blocks{state=\"free\"} 4\n",
        "terrace_kv_host_blocks{state=\"held\"} 6\n",
        "terrace_engine_draft_tokens_total{result=\"accepted\"} 11\n",
        "terrace_engine_draft_tokens_total{result=\"rejected\"} 12\n",
        "terrace_engine_preemptions_total{mode=\"recompute\"} 8\n",
        "terrace_engine_preemptions_total{mode=\"swap\"} 9\n",
        "terrace_prefix_cache_query_tokens_total 100\n", "terrace_prefix_cache_hit_tokens_total 60\n"}) {
    EXPECT_THAT(text, HasSubstr(series));
  }
}

TEST(WorkerMetrics, ATotalNeverFallsWhenSnapshotsComeOutOfOrder) {
  WorkerMetrics metrics;
  EngineStats early, late;
  early.generated_tokens = 5, late.generated_tokens = 7;
  metrics.Render(late, {});
  EXPECT_THAT(metrics.Render(early, {}), HasSubstr("terrace_engine_generation_tokens_total 7\n"));
}

TEST(WorkerMetrics, DraftsAreCountedByDrafterPositionAndVerdict) {
  WorkerMetrics metrics;
  EngineStats stats;
  SpeculationStats& speculation = stats.speculation;
  speculation.drafter = "model";
  speculation.proposed[0] = 14, speculation.proposed[4] = 9, speculation.branch_proposed = 8;
  speculation.verified[0] = 10, speculation.accepted[0] = 7;
  speculation.verified[4] = 5, speculation.accepted[4] = 1;
  speculation.branch_verified = 6, speculation.branch_accepted = 2;
  speculation.passes = 10, speculation.failures = 1;
  speculation.drafting_seconds = 0.5, speculation.saved_seconds = -0.25;
  metrics.Render(stats, {});
  const std::string text = metrics.Render(stats, {});
  for (const char* series :
       {"terrace_speculation_proposed_tokens_total{drafter=\"model\",position=\"1\"} 14\n",
        "terrace_speculation_proposed_tokens_total{drafter=\"model\",position=\"5-8\"} 9\n",
        "terrace_speculation_proposed_tokens_total{drafter=\"ngram\",position=\"1\"} 0\n",
        "terrace_speculation_branch_proposed_tokens_total{drafter=\"model\"} 8\n",
        "terrace_speculation_tokens_total{drafter=\"model\",position=\"1\",result=\"accepted\"} 7\n",
        "terrace_speculation_tokens_total{drafter=\"model\",position=\"1\",result=\"rejected\"} 3\n",
        "terrace_speculation_tokens_total{drafter=\"model\",position=\"5-8\",result=\"rejected\"} 4\n",
        "terrace_speculation_tokens_total{drafter=\"ngram\",position=\"1\",result=\"accepted\"} 0\n",
        "terrace_speculation_branch_tokens_total{drafter=\"model\",result=\"accepted\"} 2\n",
        "terrace_speculation_branch_tokens_total{drafter=\"model\",result=\"rejected\"} 4\n",
        "terrace_speculation_branch_tokens_total{drafter=\"ngram\",result=\"accepted\"} 0\n",
        "terrace_speculation_passes_total{drafter=\"model\"} 10\n",
        "terrace_speculation_failures_total{drafter=\"model\"} 1\n",
        "terrace_speculation_drafting_seconds_total{drafter=\"model\"} 0.5\n",
        "terrace_speculation_saved_seconds{drafter=\"model\"} -0.25\n"}) {
    EXPECT_THAT(text, HasSubstr(series));
  }
}

TEST(WorkerMetrics, DraftsFromAndForOtherWorkersAreCounted) {
  WorkerMetrics metrics;
  metrics.OnRemoteDrafter(RemoteDrafterState::kConnecting);
  metrics.OnRemoteDrafter(RemoteDrafterState::kRefused);
  metrics.OnRemoteTokens({.offered = 5, .late = 2});
  metrics.OnRemoteTokens({.offered = 1, .dropped = 3});
  metrics.OnServedStreams(2);
  metrics.OnServedTokens(7);
  const std::string text = metrics.Render({}, {});
  for (const char* series :
       {"terrace_speculation_remote_state{state=\"connecting\"} 0\n",
        "terrace_speculation_remote_state{state=\"connected\"} 0\n",
        "terrace_speculation_remote_state{state=\"refused\"} 1\n",
        "terrace_speculation_remote_tokens_total{result=\"offered\"} 6\n",
        "terrace_speculation_remote_tokens_total{result=\"late\"} 2\n",
        "terrace_speculation_remote_tokens_total{result=\"dropped\"} 3\n",
        "terrace_speculation_served_streams 2\n", "terrace_speculation_served_tokens_total 7\n"}) {
    EXPECT_THAT(text, HasSubstr(series));
  }
}

TEST(WorkerMetrics, EveryEndOfASequenceHasItsOutcome) {
  const struct {
    FinishReason reason;
    Status error;
    const char* outcome;
  } cases[] = {{FinishReason::kStop, {}, "stop"},
               {FinishReason::kLength, {}, "length"},
               {FinishReason::kCancelled, Cancelled("nobody reads"), "cancelled"},
               {FinishReason::kCancelled, DeadlineExceeded("late"), "deadline"},
               {FinishReason::kCancelled, Unavailable("draining"), "handed_over"},
               {FinishReason::kError, Internal("NaN"), "error"}};
  for (const auto& c : cases) {
    WorkerMetrics metrics;
    metrics.OnFinished({.reason = c.reason, .error = c.error, .stats = {}});
    EXPECT_THAT(metrics.Render({}, {}),
                HasSubstr(Concat("terrace_engine_sequences_total{outcome=\"", c.outcome, "\"} 1\n")));
  }
}

TEST(WorkerMetrics, AStepCountsItsSequencesAndTheWaitsThatEnded) {
  WorkerMetrics metrics;
  metrics.OnStep({.seconds = 0.02,
                  .prefill_tokens = 30,
                  .decode_tokens = 2,
                  .sequences = 3,
                  .draft_tokens = 4,
                  .latencies = {.queue = {0.1, 3}, .first_token = {0.5}, .inter_token = {0.1, 0.2, 0.3}}});
  const std::string text = metrics.Render({}, {});
  for (const char* series :
       {"terrace_engine_step_tokens_sum{phase=\"mixed\"} 36\n", "terrace_engine_step_sequences_sum 3\n",
        "terrace_engine_step_sequences_count 1\n", "terrace_engine_queue_seconds_count 2\n",
        "terrace_engine_time_to_first_token_seconds_bucket{le=\"0.25\"} 0\n",
        "terrace_engine_time_to_first_token_seconds_bucket{le=\"0.5\"} 1\n",
        "terrace_engine_inter_token_latency_seconds_bucket{le=\"0.1\"} 1\n",
        "terrace_engine_inter_token_latency_seconds_count 3\n"}) {
    EXPECT_THAT(text, HasSubstr(series));
  }
}

TEST(WorkerMetrics, TheBoundsOfServiceObjectivesAreBuckets) {
  for (const MetricInfo& info : AllMetrics()) {
    std::vector<double> bounds;
    if (info.name == "terrace_engine_time_to_first_token_seconds") bounds = {0.5, 2, 10};
    if (info.name == "terrace_engine_inter_token_latency_seconds") bounds = {0.1};
    EXPECT_THAT(info.buckets, ::testing::IsSupersetOf(bounds)) << info.name;
  }
}

}  // namespace
}  // namespace terrace
