#include "tools/cli/bench.h"

#include <fstream>
#include <random>
#include <utility>

#include "tools/bench/bench_report.h"
#include "tools/bench/load_run.h"
#include "tools/cli/bench_table.h"
#include "tools/cli/bench_targets.h"
#include "tools/cli/format.h"
#include "tools/cli/progress_bar.h"

namespace terrace {
namespace {

constexpr double kRateWindowSeconds = 1;

StatusOr<std::unique_ptr<BenchTarget>> OpenBenchTarget(const BenchOptions& options,
                                                       const ShutdownSignal& shutdown) {
  ASSIGN_OR_RETURN(const ChannelSecurity security, OpenSecurity(options.access));
  if (!options.router.empty()) return OpenRouterBenchTarget(options.router, options.model, security);
  if (!options.worker.empty()) return OpenWorkerBenchTarget(options.worker, security);
  if (!options.access.tls.ca.empty())
    return InvalidArgument("--tls-ca: a model in this process is not connected to");
  OpenEngineOptions engine;
  engine.model = options.model;
  engine.threads = options.threads;
  engine.max_sequences = options.max_sequences;
  engine.device = options.device;
  engine.compute = options.compute;
  engine.kv_dtype = options.kv_dtype;
  engine.speculation.drafter = options.drafter;
  engine.speculation.model = options.draft_model;
  engine.is_cancelled = [&shutdown] { return shutdown.IsPending(); };
  return OpenLocalBenchTarget(engine);
}

// Tokens per second of about the last second.
class RecentRate {
 public:
  double Update(double seconds, uint64_t tokens) {
    if (seconds - last_seconds_ >= kRateWindowSeconds) {
      rate_ = static_cast<double>(tokens - last_tokens_) / (seconds - last_seconds_);
      last_seconds_ = seconds;
      last_tokens_ = tokens;
    } else if (last_seconds_ == 0 && seconds > 0) {  // the first second is not over
      rate_ = static_cast<double>(tokens) / seconds;
    }
    return rate_;
  }

 private:
  double last_seconds_ = 0, rate_ = 0;
  uint64_t last_tokens_ = 0;
};

// One part of a benchmark, with its progress on the terminal.
class PartRunner {
 public:
  PartRunner(BenchTarget& target, const Workload& workload, const BenchSettings& settings,
             const CommandContext& context)
      : target_(target), workload_(workload), settings_(settings), context_(context) {}

  LevelResult Run(const LoadPart& part) {
    ProgressBar bar(context_,
                    Concat(part.is_warmup ? "warm-up, " : "", "level ", part.level + 1, "/",
                           settings_.levels.size(), ", ", DescribeShape(settings_.levels[part.level])));
    RecentRate rate;
    LoadHooks hooks;
    hooks.is_interrupted = [this] { return IsInterrupted(); };
    hooks.on_progress = [&](const LoadProgress& progress) {
      const uint64_t requests = part.is_warmup ? settings_.warmup_requests : settings_.requests.value_or(0);
      const std::string done =
          requests > 0 ? Concat(progress.done, "/", requests) : FormatCount(progress.done, "request");
      const double tokens_per_second = rate.Update(progress.seconds, progress.tokens);
      bar.ShowShare(progress.share, Concat(done, ", ", FormatFixed(tokens_per_second, 0), " tok/s"));
    };
    return RunLoad(target_, workload_, settings_, part, time_, hooks);
  }

  bool IsInterrupted() { return is_interrupted_ = is_interrupted_ || context_.shutdown.WaitFor(0) != 0; }

 private:
  BenchTarget& target_;
  const Workload& workload_;
  const BenchSettings& settings_;
  const CommandContext& context_;
  const std::shared_ptr<BenchTime> time_ = std::make_shared<RealBenchTime>();
  bool is_interrupted_ = false;
};

// The results of a long run are worth knowing early that they can be kept.
Status CheckWritable(const std::string& file) {
  if (file.empty() || file == "-" || std::ofstream(file, std::ios::app)) return Status();
  return Unavailable("--json: cannot write ", file);
}

Status WriteReport(const BenchOptions& options, const BenchSettings& settings,
                   const TargetDescription& target, const std::vector<LevelResult>& levels,
                   const CommandContext& context) {
  const std::string json =
      options.json.empty() ? "" : BenchReportToJson(settings, target, levels).dump(2) + "\n";
  if (options.json == "-") {
    context.out << json;
    return Status();
  }
  context.out << FormatBenchReport(settings, target, levels);
  if (options.json.empty()) return Status();
  std::ofstream file(options.json, std::ios::trunc);
  file << json << std::flush;
  return file ? Status() : Unavailable("--json: cannot write ", options.json);
}

Status NobodyAnswered(const std::vector<LevelResult>& levels) {
  std::string example;
  for (const LevelResult& level : levels) {
    if (level.ok + level.cancelled > 0) return Status();
    for (const auto& [reason, failure] : level.failures) example = Concat(reason, ": ", failure.example);
  }
  return Unavailable("no request was answered", example.empty() ? "" : Concat(": ", example));
}

}  // namespace

Status RunBench(const BenchOptions& options, const CommandContext& context) {
  RETURN_IF_ERROR(CheckWritable(options.json));
  BenchSettings settings = options.settings;
  std::random_device entropy;
  settings.cache_salt = Concat("bench-", entropy(), "-", entropy());
  ASSIGN_OR_RETURN(const std::unique_ptr<BenchTarget> target, OpenBenchTarget(options, context.shutdown));
  ASSIGN_OR_RETURN(const Workload workload, Workload::Make(settings.workload, target->vocabulary(),
                                                           target->description().context_length));
  PartRunner runner(*target, workload, settings, context);
  std::vector<LevelResult> levels;
  for (uint32_t level = 0; level < settings.levels.size() && !runner.IsInterrupted(); ++level) {
    if (settings.warmup_requests > 0) runner.Run({.level = level, .is_warmup = true});
    if (!runner.IsInterrupted()) levels.push_back(runner.Run({.level = level}));
  }
  if (!levels.empty())
    RETURN_IF_ERROR(WriteReport(options, settings, target->description(), levels, context));
  if (runner.IsInterrupted()) return Cancelled("interrupted");
  return NobodyAnswered(levels);
}

}  // namespace terrace
