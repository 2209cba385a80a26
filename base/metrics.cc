#include "base/metrics.h"

#include <algorithm>
#include <functional>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "base/status.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace terrace {
namespace {

using enum MetricType;

// Every bound of a service objective (0.5, 2 and 10 s to the first token, 0.1 s between tokens) is a bucket.
const std::vector<double> kRequestBuckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                             1,     2,      5,     10,   20,    40,   80,  160};
const std::vector<double> kTokenBuckets = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01,
                                           0.025,  0.05,    0.1,    0.25,  0.5,    1,     2.5};
const std::vector<double> kSizeBuckets = {1,    4,    16,   64,   128,   256,   512,
                                          1024, 2048, 4096, 8192, 16384, 32768, 131072};
const std::vector<double> kCountBuckets = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
// A choice among a thousand replicas takes some ten microseconds.
const std::vector<double> kPickBuckets = {1e-6, 2.5e-6, 5e-6,   1e-5, 2.5e-5, 5e-5,
                                          1e-4, 2.5e-4, 0.0005, 1e-3, 0.0025, 0.01};
const std::vector<double> kShareBuckets = {0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99};

const std::vector<MetricInfo> kMetrics = {
    // Both processes.
    {"terrace_build_info", kGauge, "Always 1; the labels tell what runs.", {"version", "component"}, {}},
    {"terrace_cert_expiry_timestamp_seconds",
     kGauge,
     "Unix time at which the first certificate in use ends. Uses: listen, workers (a router's connections to "
     "them), drafter (a worker's connection to its remote drafter).",
     {"use"},
     {}},
    {"terrace_tls_reload_failures_total",
     kCounter,
     "Times that changed certificate files could not be used and the old ones stayed in use.",
     {"use"},
     {}},
    {"terrace_log_dropped_total",
     kCounter,
     "Lines of the log that were lost because nobody read them in time.",
     {},
     {}},

    // Router: requests.
    {"terrace_requests_total",
     kCounter,
     "Finished requests. Outcomes: ok, client_error, cancelled, deadline, limited, overloaded, unavailable, "
     "error. Finish reasons, of answers that are ok: stop, length, tool_calls; else none.",
     {"api", "model", "tier", "outcome", "finish_reason"},
     {}},
    {"terrace_requests_in_flight", kGauge, "Requests that run or wait.", {}, {}},
    {"terrace_requests_queued",
     kGauge,
     "Requests that wait for a place at the tier's workers.",
     {"tier"},
     {}},
    {"terrace_texts_waiting", kGauge, "Requests whose long texts wait to be tokenized, or are.", {}, {}},
    {"terrace_token_cache_bytes_total",
     kCounter,
     "Bytes of prompts that were looked up among what was tokenized before. Results: hit (their tokens were "
     "known), miss.",
     {"result"},
     {}},
    {"terrace_pool_saturation_ratio",
     kGauge,
     "Places at the tier's workers that this router's requests take, of all; above 1 after workers went "
     "away.",
     {"tier"},
     {}},
    {"terrace_pool_token_seconds",
     kGauge,
     "Between two tokens of an answer, as they come from the tier's workers: the latest count most, and "
     "limits of time go by it. 0: none came for a minute.",
     {"tier"},
     {}},
    {"terrace_router_rejections_total",
     kCounter,
     "Requests that were refused. Reasons: rate_limit_exceeded (a tenant's limit), overloaded, no_capacity, "
     "model_not_certified, draining, too_many_resets (a connection's limit).",
     {"reason"},
     {}},
    {"terrace_request_duration_seconds",
     kHistogram,
     "From the request's arrival to the end of its answer.",
     {"tier", "outcome"},
     kRequestBuckets},
    {"terrace_request_queue_seconds",
     kHistogram,
     "From the request's arrival to its start on a worker.",
     {"tier"},
     kRequestBuckets},
    {"terrace_time_to_first_token_seconds",
     kHistogram,
     "From the request's arrival to the first token sent to the client.",
     {"tier"},
     kRequestBuckets},
    {"terrace_inter_token_latency_seconds",
     kHistogram,
     "Between two tokens of an answer, as they leave the router.",
     {"tier"},
     kTokenBuckets},
    {"terrace_request_prompt_tokens", kHistogram, "Of a request's prompt.", {"tier"}, kSizeBuckets},
    {"terrace_request_generation_tokens", kHistogram, "Of all answers to a request.", {"tier"}, kSizeBuckets},
    {"terrace_slow_readers_total",
     kCounter,
     "Streams cut off because their client read nothing for too long.",
     {"api"},
     {}},

    // Router: connections.
    {"terrace_http_connections", kGauge, "Open connections of the HTTP listener.", {}, {}},
    {"terrace_http_full_total",
     kCounter,
     "Times that the HTTP listener stopped accepting connections because max_connections were open.",
     {},
     {}},
    {"terrace_http_rejections_total",
     kCounter,
     "Requests that the HTTP listener itself refused, and connections that it closed. Reasons: malformed, "
     "transfer_encoding, expectation, method, uri_too_long, header_too_large, too_many_headers, "
     "body_too_large, "
     "chunk_overhead, overloaded, slow_header, slow_body, slow_reader, tls_handshake.",
     {"reason"},
     {}},
    {"terrace_http_resets_total",
     kCounter,
     "Calls of the gRPC listener that their client reset, or lost with its connection, before anything of "
     "their "
     "answer was sent.",
     {},
     {}},

    // Router: tenants, the first 50 and "other".
    {"terrace_tenant_requests_total",
     kCounter,
     "Finished requests of the tenant; outcomes as of terrace_requests_total.",
     {"tenant", "outcome"},
     {}},
    {"terrace_tenant_tokens_total",
     kCounter,
     "Tokens of the tenant's answered requests. Directions: prompt, completion.",
     {"tenant", "direction"},
     {}},
    {"terrace_tenant_rejections_total",
     kCounter,
     "Requests of the tenant that were refused; reasons as of terrace_router_rejections_total.",
     {"tenant", "reason"},
     {}},

    // Router: configuration.
    {"terrace_policy_calibration_stale",
     kGauge,
     "1 while a tier of the policy serves another model than its calibration was measured on: the last tier "
     "answers alone.",
     {"policy"},
     {}},
    {"terrace_policy_drifted",
     kGauge,
     "1 since the answers of the policy's smaller tiers have disagreed too often with its last tier's: that "
     "one answers alone.",
     {"policy"},
     {}},
    {"terrace_policy_agreement_ratio",
     kGauge,
     "Share of the policy's last shadow requests whose two answers agree.",
     {"policy"},
     {}},
    {"terrace_policy_answer_agreement_ratio",
     kHistogram,
     "How far the two answers to a shadow request agree: 1 for the same text, else the share of the longer "
     "one's tokens up to the first difference.",
     {"policy"},
     kShareBuckets},
    {"terrace_policy_shadow_requests_total",
     kCounter,
     "Requests that a smaller tier answered and that were drawn for the last tier too. Results: agreed, "
     "disagreed, failed, dropped (max_in_flight of them were under way, others wanted the tier, or it could "
     "not take them).",
     {"policy", "result"},
     {}},
    {"terrace_policy_shadow_records_total",
     kCounter,
     "Requests that were drawn for a record of all tiers' answers. Results: written, dropped "
     "(max_in_flight were under way, others wanted a tier, or it could not take them), failed (a tier "
     "did, or its answer has no finite signals), unwritten (the file could not be written), refused "
     "(it is full or of other tiers, and no more are drawn).",
     {"policy", "result"},
     {}},
    {"terrace_config_reload_success",
     kGauge,
     "1 while what the configuration's files say is what runs, 0 after a reload that was refused.",
     {},
     {}},
    {"terrace_config_reloads_total",
     kCounter,
     "Reloads of the configuration. Results: ok, refused.",
     {"result"},
     {}},
    {"terrace_config_hash",
     kGauge,
     "A number (48 bits of a SHA-256) of the configuration in use: where it differs, configurations do.",
     {},
     {}},

    // Router: tokens and money.
    {"terrace_prompt_tokens_total",
     kCounter,
     "Prompt tokens of the tier's attempts; several answers to one request share one prompt.",
     {"tier"},
     {}},
    {"terrace_cached_tokens_total", kCounter, "Prompt tokens that a worker had in its cache.", {"tier"}, {}},
    {"terrace_prefix_predicted_tokens_total",
     kCounter,
     "Prompt tokens that the router believed to be in a worker's cache, of attempts that were answered.",
     {"tier"},
     {}},
    {"terrace_prefix_error_tokens_total",
     kCounter,
     "By how many tokens it was wrong. Directions: over (they were not cached), under (more were).",
     {"tier", "direction"},
     {}},
    {"terrace_generation_tokens_total", kCounter, "Tokens that the tier generated.", {"tier"}, {}},
    {"terrace_cost_usd_total", kCounter, "Price of the tier's attempts in US dollars.", {"tier"}, {}},

    // Router: tiers and workers.
    {"terrace_tier_attempts_total",
     kCounter,
     "Attempts at an answer on a tier. Results: accepted, escalated, abandoned, failed.",
     {"tier", "result"},
     {}},
    {"terrace_escalations_total",
     kCounter,
     "Answers that the gate did not accept, by the tier that gave them and the one asked next.",
     {"from", "to"},
     {}},
    {"terrace_tier_draft_tokens_total",
     kCounter,
     "Tokens of the tier before that the tier was to verify as a draft. Results: accepted (its answer has "
     "them too), rejected.",
     {"tier", "result"},
     {}},
    {"terrace_router_picks_total",
     kCounter,
     "Choices of a replica for an attempt. Results: cached (it has some of the prompt, as far as the router "
     "knows), uncached, none (no replica was ready).",
     {"tier", "result"},
     {}},
    {"terrace_router_pick_seconds", kHistogram, "Time that such a choice took.", {"tier"}, kPickBuckets},
    {"terrace_router_retries_total",
     kCounter,
     "Attempts at an answer after another one on the same tier failed before its first token. Reasons: "
     "unavailable, unknown, internal, protocol, overloaded.",
     {"tier", "reason"},
     {}},
    {"terrace_router_retries_refused_total",
     kCounter,
     "Attempts that were not made because there had been too many retries lately.",
     {"tier"},
     {}},
    {"terrace_router_resumes_total",
     kCounter,
     "Attempts that went on with an answer that had begun, after another one failed. Reasons: unavailable "
     "(the worker was lost), silent (it gave no sign of life), draining, unknown, internal, protocol, "
     "overloaded.",
     {"tier", "reason"},
     {}},
    {"terrace_router_resume_gap_seconds",
     kHistogram,
     "From the last token before an attempt failed to the next one of the answer.",
     {"tier"},
     kRequestBuckets},
    {"terrace_poison_requests_total",
     kCounter,
     "Requests that took workers down, killed or hung. Events: quarantined (another worker was lost at the "
     "same place), refused (such a request came again).",
     {"tier", "event"},
     {}},
    {"terrace_worker_state",
     kGauge,
     "1 for the state a replica is in, 0 for the others.",
     {"tier", "replica", "state"},
     {}},
    {"terrace_prefix_index_keys",
     kGauge,
     "KV blocks that the router knows to be in a replica's prefix cache.",
     {"tier", "replica"},
     {}},
    {"terrace_prefix_resyncs_total",
     kCounter,
     "Times that a replica's prefixes were asked for anew because an update was lost or its digest was "
     "wrong.",
     {"tier"},
     {}},
    {"terrace_worker_ejections_total",
     kCounter,
     "Times that a replica got no requests for a while because its calls kept failing. Causes, of the last "
     "failure: unavailable, unknown, internal, protocol.",
     {"tier", "cause"},
     {}},
    {"terrace_discovery_errors_total",
     kCounter,
     "Failed look-ups of the tier's workers: names of DNS, and files.",
     {"tier"},
     {}},
    {"terrace_discovery_success_timestamp_seconds",
     kGauge,
     "When all of the tier's names and files could be looked up, the last time; Unix time.",
     {"tier"},
     {}},
    {"terrace_pool_ready_workers", kGauge, "Replicas of the tier that can take a request.", {"tier"}, {}},
    {"terrace_pool_refused_workers",
     kGauge,
     "Replicas of the tier that would be ready, but for their model: no manifest lets it in. Reasons: "
     "manifest_unreadable, manifest_malformed, manifest_unknown_key, manifest_bad_signature, "
     "manifest_other_model, manifest_other_arithmetic, manifest_other_baseline, manifest_failed, "
     "manifest_outside_limits.",
     {"tier", "reason"},
     {}},

    // Worker: engine.
    {"terrace_engine_requests_running", kGauge, "Sequences in the batch.", {}, {}},
    {"terrace_engine_requests_waiting", kGauge, "Sequences that wait for a place in the batch.", {}, {}},
    {"terrace_engine_requests_paused",
     kGauge,
     "Sequences in the batch that compute nothing because their client does not read.",
     {},
     {}},
    {"terrace_engine_waiting_prompt_tokens", kGauge, "Prompt tokens not yet computed.", {}, {}},
    {"terrace_engine_step_seconds",
     kHistogram,
     "Time of one engine step. Phases: prefill, decode, mixed.",
     {"phase"},
     kTokenBuckets},
    {"terrace_engine_step_tokens",
     kHistogram,
     "Tokens computed in one engine step. Phases: prefill, decode, mixed.",
     {"phase"},
     kCountBuckets},
    {"terrace_engine_step_sequences", kHistogram, "Sequences in one engine step.", {}, kCountBuckets},
    {"terrace_engine_queue_seconds",
     kHistogram,
     "From a sequence's arrival to its place in the batch.",
     {},
     kRequestBuckets},
    {"terrace_engine_time_to_first_token_seconds",
     kHistogram,
     "From a sequence's arrival to the first token of its answer.",
     {},
     kRequestBuckets},
    {"terrace_engine_inter_token_latency_seconds",
     kHistogram,
     "Between two tokens of an answer, as they leave the engine.",
     {},
     kTokenBuckets},
    {"terrace_engine_last_step_age_seconds",
     kGauge,
     "Time since the last finished step while there is work; 0 when idle.",
     {},
     {}},
    {"terrace_engine_prompt_tokens_total",
     kCounter,
     "Prompt tokens computed, and tokens of answers computed again: resumed ones, and after a preemption.",
     {},
     {}},
    {"terrace_engine_generation_tokens_total", kCounter, "Tokens sampled.", {}, {}},
    {"terrace_engine_draft_tokens_total",
     kCounter,
     "Tokens of drafts. Results: accepted (the answer has them), rejected (from the first that it does not "
     "have on).",
     {"result"},
     {}},
    {"terrace_speculation_proposed_tokens_total",
     kCounter,
     "Tokens that the worker's own drafter gave, by their place in the draft: 1, 2, 3, 4, 5-8, 9+. "
     "Those that are not worth it are not verified. Drafters: ngram, model, remote.",
     {"drafter", "position"},
     {}},
    {"terrace_speculation_tokens_total",
     kCounter,
     "Tokens of the worker's own drafts that were verified, by their place in the draft: 1, 2, 3, 4, 5-8, "
     "9+. Results: accepted (the answer has them), rejected. Drafters: ngram, model, remote.",
     {"drafter", "position", "result"},
     {}},
    {"terrace_speculation_branch_proposed_tokens_total",
     kCounter,
     "Tokens of second guesses that the drafter gave beside such drafts.",
     {"drafter"},
     {}},
    {"terrace_speculation_branch_tokens_total",
     kCounter,
     "Tokens of second guesses that were verified beside such drafts. Results: accepted (the answer has "
     "them), rejected.",
     {"drafter", "result"},
     {}},
    {"terrace_speculation_passes_total",
     kCounter,
     "Passes of a sequence through the model with such a draft: each gives one token more than it accepts.",
     {"drafter"},
     {}},
    {"terrace_speculation_drafting_seconds_total",
     kCounter,
     "Time that drafting took, of that of the steps.",
     {"drafter"},
     {}},
    {"terrace_speculation_saved_seconds",
     kGauge,
     "Time saved since the start, as the measured costs of steps have it; below 0: lost.",
     {"drafter"},
     {}},
    {"terrace_speculation_failures_total",
     kCounter,
     "Drafters that failed: the worker goes on without.",
     {"drafter"},
     {}},
    {"terrace_speculation_remote_state",
     kGauge,
     "1 for the state of a remote drafter's connection, 0 for the others. States: connecting, connected, "
     "refused (it has another tokenizer or protocol).",
     {"state"},
     {}},
    {"terrace_speculation_remote_tokens_total",
     kCounter,
     "Tokens that a remote drafter sent. Results: offered (in time, whether they were verified or not), late "
     "(the answer had them already), dropped (the answer had gone on otherwise).",
     {"result"},
     {}},
    {"terrace_speculation_served_streams", kGauge, "Other workers that this one drafts for.", {}, {}},
    {"terrace_speculation_served_tokens_total",
     kCounter,
     "Tokens drafted for answers of other workers, of terrace_engine_generation_tokens_total.",
     {},
     {}},
    {"terrace_engine_sequences_total",
     kCounter,
     "Finished sequences. Outcomes: stop, length, cancelled, deadline, error, handed_over (the worker "
     "drained, or lost its device or a rank of its group), refused.",
     {"outcome"},
     {}},
    {"terrace_engine_preemptions_total",
     kCounter,
     "Times a sequence gave its blocks up and waited again. Modes: recompute, swap.",
     {"mode"},
     {}},
    {"terrace_numeric_errors_total", kCounter, "Sequences ended because a logit was not finite.", {}, {}},
    {"terrace_model_load_seconds", kGauge, "Time it took to load the model and warm up.", {}, {}},

    // Worker: KV cache.
    {"terrace_kv_blocks", kGauge, "Blocks of the KV pool. States: free, held, cached.", {"state"}, {}},
    {"terrace_kv_host_blocks", kGauge, "Blocks of the swap memory. States: free, held.", {"state"}, {}},
    {"terrace_kv_cache_usage_ratio", kGauge, "Share of the KV pool's blocks that are held, 0 to 1.", {}, {}},
    {"terrace_kv_cache_info",
     kGauge,
     "Always 1; the labels tell the shape of the KV pool.",
     {"block_tokens", "blocks", "dtype"},
     {}},
    {"terrace_group_ranks", kGauge, "Processes that run the model together; 1: this one alone.", {}, {}},
    {"terrace_group_parallel_degree",
     kGauge,
     "Ranks of a group that share each layer, and stages of layers that they form. Kinds: tensor, pipeline.",
     {"kind"},
     {}},
    {"terrace_group_rank_memory_bytes",
     kGauge,
     "Memory of each rank of a group. Kinds: weights, kv.",
     {"rank", "kind"},
     {}},
    {"terrace_prefix_cache_query_tokens_total",
     kCounter,
     "Prompt tokens looked up in the prefix cache.",
     {},
     {}},
    {"terrace_prefix_cache_hit_tokens_total",
     kCounter,
     "Prompt tokens of admitted sequences that the prefix cache had.",
     {},
     {}},
};

const MetricInfo& Find(std::string_view name, MetricType type, size_t labels) {
  static const auto by_name = [] {
    std::unordered_map<std::string_view, const MetricInfo*> index;
    for (const MetricInfo& each : kMetrics) index.emplace(each.name, &each);
    return index;
  }();
  const auto found = by_name.find(name);
  CHECK(found != by_name.end(), "no metric \"", name, "\" in the table of base/metrics.cc");
  const MetricInfo& info = *found->second;
  CHECK(info.type == type, name, " is asked for as another type than the table says");
  CHECK(info.labels.size() == labels, name, " has ", info.labels.size(), " labels, asked with ", labels);
  return info;
}

class CounterHandle : public MetricRegistry::Counter {
 public:
  explicit CounterHandle(prometheus::Counter& counter) : counter_(counter) {}
  void Add(double value) override { counter_.Increment(value); }

 private:
  prometheus::Counter& counter_;
};

class GaugeHandle : public MetricRegistry::Gauge {
 public:
  explicit GaugeHandle(prometheus::Gauge& gauge) : gauge_(gauge) {}
  void Set(double value) override { gauge_.Set(value); }

 private:
  prometheus::Gauge& gauge_;
};

class HistogramHandle : public MetricRegistry::Histogram {
 public:
  explicit HistogramHandle(prometheus::Histogram& histogram) : histogram_(histogram) {}
  void Observe(double value) override { histogram_.Observe(value); }

 private:
  prometheus::Histogram& histogram_;
};

}  // namespace

struct MetricRegistry::Impl {
  // A time series, and how a caller names it: a metric of the table and the values of its labels.
  using Series = std::pair<const MetricInfo*, std::vector<std::string>>;
  using NamedSeries = std::pair<const MetricInfo*, std::span<const std::string>>;
  struct Before {
    using is_transparent = void;
    template <typename A, typename B>
    bool operator()(const A& a, const B& b) const {
      if (a.first != b.first) return std::less<>()(a.first, b.first);
      return std::ranges::lexicographical_compare(a.second, b.second);
    }
  };
  template <typename Handle>
  using Handles = std::map<Series, std::unique_ptr<Handle>, Before>;

  // The handle of a time series, made on first use; `extra` goes to the constructor of prometheus' metric.
  template <typename Handle, typename Builder, typename... Extra>
  Handle& Get(const MetricInfo& info, std::span<const std::string> values, Builder build,
              Handles<Handle>& handles, const Extra&... extra) {
    std::lock_guard lock(mutex);
    if (const auto found = handles.find(NamedSeries(&info, values)); found != handles.end())
      return *found->second;
    std::map<std::string, std::string> labels;
    for (size_t i = 0; i < values.size(); ++i) labels.emplace(info.labels[i], values[i]);
    auto& family = build.Name(std::string(info.name)).Help(std::string(info.help)).Register(registry);
    auto handle = std::make_unique<Handle>(family.Add(labels, extra...));
    return *(handles[Series(&info, {values.begin(), values.end()})] = std::move(handle));
  }

  prometheus::Registry registry{prometheus::Registry::InsertBehavior::Merge};
  std::mutex mutex;
  Handles<CounterHandle> counters;      // GUARDED_BY(mutex)
  Handles<GaugeHandle> gauges;          // GUARDED_BY(mutex)
  Handles<HistogramHandle> histograms;  // GUARDED_BY(mutex)
};

std::span<const MetricInfo> AllMetrics() { return kMetrics; }

MetricRegistry::MetricRegistry() : impl_(std::make_unique<Impl>()) {}
MetricRegistry::~MetricRegistry() = default;

MetricRegistry::Counter& MetricRegistry::GetCounter(std::string_view name,
                                                    std::span<const std::string> labels) {
  return impl_->Get(Find(name, kCounter, labels.size()), labels, prometheus::BuildCounter(), impl_->counters);
}

MetricRegistry::Gauge& MetricRegistry::GetGauge(std::string_view name, std::span<const std::string> labels) {
  return impl_->Get(Find(name, kGauge, labels.size()), labels, prometheus::BuildGauge(), impl_->gauges);
}

MetricRegistry::Histogram& MetricRegistry::GetHistogram(std::string_view name,
                                                        std::span<const std::string> labels) {
  const MetricInfo& info = Find(name, kHistogram, labels.size());
  return impl_->Get(info, labels, prometheus::BuildHistogram(), impl_->histograms, info.buckets);
}

std::string MetricRegistry::Render() const {
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect());
}

}  // namespace terrace
