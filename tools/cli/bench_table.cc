#include "tools/cli/bench_table.h"

#include <algorithm>
#include <cmath>

#include "tools/cli/format.h"
#include "tools/cli/speculation_text.h"

namespace terrace {
namespace {

using Row = std::vector<std::string>;

constexpr double kSecondsToTrust = 1;

// Three digits that count: "0.082 ms", "1.23 ms", "12.3 ms", "1.23 s".
std::string Latency(double seconds) {
  const double value = seconds < 1 ? seconds * 1e3 : seconds;
  const int decimals = value < 0.9995 ? 3 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return Concat(FormatFixed(value, decimals), seconds < 1 ? " ms" : " s");
}

std::string Rate(double per_second) {
  return FormatFixed(per_second, per_second < 10 ? 2 : per_second < 100 ? 1 : 0);
}

bool IsOpen(const LevelResult& level) { return std::holds_alternative<OpenLoop>(level.shape); }

std::string LevelName(const LevelResult& level) {
  if (const auto* closed = std::get_if<ClosedLoop>(&level.shape)) return std::to_string(closed->concurrency);
  return Concat(std::get<OpenLoop>(level.shape).rate);
}

std::string DescribeTarget(const TargetDescription& target) {
  std::string out = Concat(target.kind, " ", target.name);
  const auto add = [&out](const std::string& text, const char* what = "") {
    if (!text.empty()) out += Concat(", ", text, what);
  };
  add(target.model);
  if (target.parameters > 0) add(FormatCount(target.parameters), " parameters");
  add(target.weight_dtype, " weights");
  if (!target.compute.empty()) add(Concat("compute ", target.compute));
  add(target.kv_dtype, " KV cache");
  add(target.device);
  if (target.threads > 0) add(FormatCount(target.threads, "thread"));
  if (target.max_sequences > 0) add(FormatCount(target.max_sequences), " sequences at once");
  return out + "\n";
}

std::string DescribeSettings(const BenchSettings& settings) {
  const WorkloadSettings& workload = settings.workload;
  std::string out;
  if (const auto* open = std::get_if<OpenLoop>(&settings.levels.front())) {
    out =
        Concat("open loop, ", open->arrivals == ArrivalKind::kPoisson ? "poisson" : "constant", " arrivals");
  } else {
    out = "closed loop";
  }
  if (settings.requests.has_value()) out += Concat(", ", *settings.requests, " requests a level");
  if (settings.duration_seconds.has_value()) out += Concat(", ", *settings.duration_seconds, " s a level");
  if (settings.warmup_requests > 0) out += Concat(" after ", settings.warmup_requests, " not counted");
  out += Concat(", prompts of ", workload.prompt_tokens.text(), " tokens");
  if (workload.shared_prefix_tokens > 0) {
    out += Concat(" (the first ", workload.shared_prefix_tokens, " shared, ", workload.prefix_groups,
                  workload.prefix_groups == 1 ? " group)" : " groups)");
  }
  return out + Concat(", answers of ", workload.output_tokens.text(), ", seed ", workload.seed, "\n");
}

std::string ThroughputTable(const std::vector<LevelResult>& levels) {
  std::vector<Row> rows = {{IsOpen(levels.front()) ? "asked/s" : "concurrency", "ok", "failed", "cancelled",
                            "dropped", "seconds", "requests/s", "prompt tok/s", "output tok/s", "ratio",
                            "cached"}};
  for (const LevelResult& level : levels) {
    rows.push_back(
        {LevelName(level), FormatCount(level.ok), FormatCount(level.failed), FormatCount(level.cancelled),
         FormatCount(level.dropped), FormatFixed(level.seconds, 2), Rate(level.PerSecond(level.ok)),
         Rate(level.PerSecond(level.prompt_tokens)), Rate(level.output_tokens_per_second()),
         FormatFixed(OutputRatio(level, levels.front()), 2),
         level.reported_prompt_tokens == 0 ? "-" : FormatFixed(100 * level.cached_share(), 1) + "%"});
  }
  return FormatTable(rows, 1);
}

std::string LatencyTable(const std::vector<LevelResult>& levels) {
  std::vector<Row> rows = {{IsOpen(levels.front()) ? "asked/s" : "concurrency", "latency", "mean"}};
  for (const double percent : kReportedPercentiles) rows[0].push_back(Concat("p", percent));
  rows[0].push_back("max");
  for (const LevelResult& level : levels) {
    const std::pair<const char*, const LatencyHistogram&> latencies[] = {{"first token", level.first_token},
                                                                         {"inter-token", level.inter_token},
                                                                         {"end to end", level.end_to_end},
                                                                         {"queue", level.queue}};
    for (const auto& [name, latency] : latencies) {
      if (latency.count() == 0) continue;
      Row& row = rows.emplace_back(Row{LevelName(level), name, Latency(latency.mean())});
      for (const double percent : kReportedPercentiles) row.push_back(Latency(latency.Percentile(percent)));
      row.push_back(Latency(latency.max()));
    }
  }
  return rows.size() == 1 ? "" : "\n" + FormatTable(rows, 2);
}

// What a reader must know before trusting the numbers; most of it should not happen.
std::string Notes(const LevelResult& level) {
  std::string out;
  const std::string name = DescribeShape(level.shape);
  for (const auto& [reason, failure] : level.failures)
    out += Concat(name, ": ", failure.count, " failed, ", reason, ": ", Shorten(failure.example, 160), "\n");
  if (level.dropped > 0) {
    out += Concat(name, ": ", level.dropped, " of ", level.planned,
                  " requests were not sent, for --max-in-flight ",
                  std::get<OpenLoop>(level.shape).max_in_flight, " were under way\n");
  }
  if (level.short_answers > 0) {
    const ShortAnswer& first = level.short_answer_examples.front();
    out += Concat(name, ": ", FormatCount(level.short_answers, "answer"), " shorter than asked (request ",
                  first.request, ": ", first.tokens, " of ", first.wanted_tokens,
                  " tokens): these figures flatter the target\n");
  }
  if (level.cut_requests > 0)
    out += Concat(name, ": ", FormatCount(level.cut_requests, "request"),
                  " drawn longer than the context, and cut\n");
  if (level.send_lag.Percentile(99) > kSendLagWorthSaying) {
    out += Concat(name, ": this client sent up to ", Latency(level.send_lag.max()), " late (p99 ",
                  Latency(level.send_lag.Percentile(99)), "): it is short of processor time\n");
  }
  if (level.is_interrupted) {
    out += Concat(name, ": interrupted after ", FormatCount(level.planned, "request"));
    out += level.unfinished > 0 ? Concat(", ", level.unfinished, " did not end\n") : "\n";
  }
  return out;
}

std::string DraftsLine(const LevelResult& level) {
  const std::string text = DescribeSpeculation(level.speculation);
  return text.empty() ? "" : Concat(DescribeShape(level.shape), ": ", text, "\n");
}

std::string AnswerLengths(const std::vector<LevelResult>& levels) {
  uint32_t least = 0, most = 0;
  bool has_any = false;
  for (const LevelResult& level : levels) {
    if (level.ok == 0) continue;
    least = has_any ? std::min(least, level.min_output_tokens) : level.min_output_tokens;
    most = std::max(most, level.max_output_tokens);
    has_any = true;
  }
  if (!has_any) return "";
  const std::string tokens = least == most ? std::to_string(least) : Concat(least, " to ", most);
  return Concat("tokens of each complete answer: ", tokens, "\n");
}

}  // namespace

std::string FormatBenchReport(const BenchSettings& settings, const TargetDescription& target,
                              const std::vector<LevelResult>& levels) {
  std::string out = DescribeTarget(target) + DescribeSettings(settings);
  if (levels.empty()) return out;
  out += Concat("\n", ThroughputTable(levels), LatencyTable(levels), "\n", AnswerLengths(levels));
  for (const LevelResult& level : levels) out += DraftsLine(level);
  for (const LevelResult& level : levels) out += Notes(level);
  const auto is_short = [](const LevelResult& level) { return level.seconds < kSecondsToTrust; };
  if (std::any_of(levels.begin(), levels.end(), is_short))
    out += "levels of less than a second vary from run to run: more --requests, or a --duration\n";
  return out;
}

}  // namespace terrace
