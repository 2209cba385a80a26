#include "tools/bench/bench_report.h"

#include "base/version.h"

namespace terrace {
namespace {

constexpr char kFormat[] = "terrace-bench-1";
constexpr char kPercentiles[] =
    "nearest rank over all samples in logarithmic buckets: never below the true value, at most 0.4% above it";

Json IfKnown(bool is_known, Json value) { return is_known ? std::move(value) : Json(); }

Json ToJson(const TargetDescription& target) {
  const auto text = [](const std::string& value) { return IfKnown(!value.empty(), value); };
  const auto number = [](uint64_t value) { return IfKnown(value > 0, value); };
  return {{"kind", target.kind},
          {"name", target.name},
          {"model", text(target.model)},
          {"version", text(target.version)},
          {"device", text(target.device)},
          {"weight_dtype", text(target.weight_dtype)},
          {"compute", text(target.compute)},
          {"kv_dtype", text(target.kv_dtype)},
          {"parameters", number(target.parameters)},
          {"context_length", number(target.context_length)},
          {"max_sequences", number(target.max_sequences)},
          {"threads", number(target.threads)}};
}

Json ToJson(const BenchSettings& settings) {
  const WorkloadSettings& workload = settings.workload;
  return {{"requests", OrNull(settings.requests)},
          {"duration_seconds", OrNull(settings.duration_seconds)},
          {"warmup_requests", settings.warmup_requests},
          {"prompt_tokens", workload.prompt_tokens.text()},
          {"output_tokens", workload.output_tokens.text()},
          {"shared_prefix_tokens", workload.shared_prefix_tokens},
          {"prefix_groups", workload.prefix_groups},
          {"prefix_zipf", workload.prefix_zipf},
          {"cancel_fraction", workload.cancel_fraction},
          {"seed", workload.seed},
          {"temperature", settings.temperature},
          {"priority", settings.priority},
          {"deadline_seconds", OrNull(settings.deadline_seconds)},
          {"ignore_eos", true}};
}

Json ToJson(const LoadShape& shape) {
  if (const auto* closed = std::get_if<ClosedLoop>(&shape))
    return {{"kind", "closed"}, {"concurrency", closed->concurrency}};
  const auto& open = std::get<OpenLoop>(shape);
  return {{"kind", "open"},
          {"rate", open.rate},
          {"arrivals", open.arrivals == ArrivalKind::kPoisson ? "poisson" : "constant"},
          {"max_in_flight", open.max_in_flight}};
}

Json ToJson(const LatencyHistogram& latency) {
  Json json = {{"count", latency.count()}, {"mean", latency.mean()}, {"max", latency.max()}};
  for (const double percent : kReportedPercentiles)
    json[Concat("p", static_cast<int>(percent))] = latency.Percentile(percent);
  return json;
}

Json ToJson(const LevelResult& level, const LevelResult& first) {
  Json failures = Json::array(), short_answers = Json::array();
  for (const auto& [reason, failure] : level.failures)
    failures.push_back({{"reason", reason}, {"count", failure.count}, {"example", failure.example}});
  for (const ShortAnswer& answer : level.short_answer_examples) {
    short_answers.push_back(
        {{"request", answer.request}, {"wanted_tokens", answer.wanted_tokens}, {"tokens", answer.tokens}});
  }
  const bool has_cache_counts = level.reported_prompt_tokens > 0;
  return {{"load", ToJson(level.shape)},
          {"interrupted", level.is_interrupted},
          {"requests",
           {{"planned", level.planned},
            {"ok", level.ok},
            {"failed", level.failed},
            {"cancelled", level.cancelled},
            {"dropped", level.dropped},
            {"unfinished", level.unfinished},
            {"cut_to_context", level.cut_requests}}},
          {"failures", std::move(failures)},
          {"seconds", level.seconds},
          {"requests_per_second", level.PerSecond(level.ok)},
          {"prompt_tokens_per_second", level.PerSecond(level.prompt_tokens)},
          {"output_tokens_per_second", level.output_tokens_per_second()},
          {"output_ratio_to_first_level", OutputRatio(level, first)},
          {"tokens",
           {{"prompt", level.prompt_tokens},
            {"output", level.output_tokens},
            {"cached", IfKnown(has_cache_counts, level.cached_tokens)},
            {"cached_share", IfKnown(has_cache_counts, level.cached_share())}}},
          {"speculation", SpeculationToJson(level.speculation)},
          {"output_tokens_per_request", {{"min", level.min_output_tokens}, {"max", level.max_output_tokens}}},
          {"short_answers", {{"count", level.short_answers}, {"examples", std::move(short_answers)}}},
          {"latency_seconds",
           {{"first_token", ToJson(level.first_token)},
            {"inter_token", ToJson(level.inter_token)},
            {"end_to_end", ToJson(level.end_to_end)},
            {"queue", IfKnown(level.queue.count() > 0, ToJson(level.queue))},
            {"send_lag", ToJson(level.send_lag)}}}};
}

}  // namespace

double OutputRatio(const LevelResult& level, const LevelResult& first) {
  const double base = first.output_tokens_per_second();
  return base > 0 ? level.output_tokens_per_second() / base : 0;
}

std::string DescribeShape(const LoadShape& shape) {
  if (const auto* closed = std::get_if<ClosedLoop>(&shape))
    return Concat("concurrency ", closed->concurrency);
  return Concat(std::get<OpenLoop>(shape).rate, " requests/s");
}

Json BenchReportToJson(const BenchSettings& settings, const TargetDescription& target,
                       const std::vector<LevelResult>& levels) {
  Json json = {{"format", kFormat},        {"version", kVersion},          {"percentiles", kPercentiles},
               {"target", ToJson(target)}, {"settings", ToJson(settings)}, {"levels", Json::array()}};
  for (const LevelResult& level : levels) json["levels"].push_back(ToJson(level, levels.front()));
  return json;
}

}  // namespace terrace
