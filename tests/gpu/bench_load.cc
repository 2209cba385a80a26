// From the start of a process to a model's first token, as terrace-worker and the CLI load it: a process of
// its own for each measurement, so that it pays for the driver's start, the libraries and what CUDA loads
// lazily. The files are of Llama 3.1 8B's shape, just written: in the page cache.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/json.h"
#include "tests/gpu/bench_model.h"
#include "tests/gpu/large_model.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/open_engine.h"

extern "C" const terrace::DeviceBackend* terrace_device_backend();

namespace terrace {
namespace {

constexpr uint32_t kPromptTokens = 128;
constexpr double kMostFactor = 1.5, kMostExtraSeconds = 1.5;  // of the goal

StatusOr<const DeviceBackend*> LinkedBackend() {
  const DeviceBackend* backend = terrace_device_backend();
  RETURN_IF_ERROR(backend->probe());
  return backend;
}

StatusOr<double> SecondsToToken(OpenedEngine& opened) {
  const MonoTime begin = RealClock().Now();
  SequenceSpec spec;
  for (uint32_t i = 0; i < kPromptTokens; ++i) spec.prompt.push_back(static_cast<int32_t>(i * 997 % 100'000));
  spec.cache_salt = Concat(begin.time_since_epoch().count());  // no prefix of an answer before
  spec.max_tokens = 1;
  spec.ignore_eos = true;
  spec.sampling.temperature = 0;
  auto sink = std::make_shared<CollectingSink>();
  RETURN_IF_ERROR(opened.engine->Submit(std::move(spec), sink));
  RETURN_IF_ERROR(sink->Wait().result.error);
  return Seconds(RealClock().Now() - begin);
}

struct Part {
  const char* name;
  const char* label;
};
constexpr Part kLoadParts[] = {
    {"open", "open: check, digest, tokenizer"},
    {"device", "the driver's start"},
    {"weights", "weights to the device"},
    {"read", "... of it, copies to pinned memory"},
    {"wait", "... of it, waiting for the device"},
    {"executor", "KV pool, cuBLASLt, scratch memory"},
    {"first", "the first request: 128 tokens"},
    {"second", "a second one, which times algorithms"},
    {"third", "a third one"},
};

// One process; seconds from its start to the line that says that there is a token.
StatusOr<Json> LoadOnce(const std::string& path, double& seconds) {
  const std::string command = Concat("exec '", std::filesystem::read_symlink("/proc/self/exe").string(),
                                     "' --first-token '", path, "'");
  const MonoTime begin = RealClock().Now();
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> child(::popen(command.c_str(), "r"), ::pclose);
  if (child == nullptr) return Internal("popen failed");
  char line[4096];
  if (std::fgets(line, sizeof(line), child.get()) == nullptr)
    return Internal("the process that loads failed");
  seconds = Seconds(RealClock().Now() - begin);
  if (std::fgets(line, sizeof(line), child.get()) == nullptr)
    return Internal("the process that loads failed");
  return ParseJson(line);
}

Status MeasureLoad(BenchContext& bench, const std::string& name, const std::string& path) {
  const auto bytes = static_cast<double>(std::filesystem::file_size(path));
  const double transfer = bytes / bench.limits.to_device;
  std::vector<double> seconds;
  std::map<std::string, std::vector<double>> parts;
  for (int round = 0; round < (bench.is_quick ? 1 : 3); ++round) {
    double one = 0;
    ASSIGN_OR_RETURN(const Json found, LoadOnce(path, one));
    seconds.push_back(one);
    for (const auto& [part, value] : found.items()) parts[part].push_back(value.get<double>());
  }
  const Timing timing = TimingOf(seconds);
  bench.report.Add({.name = Concat("load ", name, ", process start to first token"),
                    .value = timing.seconds,
                    .unit = "s",
                    .spread = timing.spread,
                    .fraction = transfer / timing.seconds,
                    .limit = "pinned copy",
                    .goal = BenchGoal::AtMost(kMostFactor * transfer + kMostExtraSeconds)});
  for (const Part& part : kLoadParts) {
    if (!parts.contains(part.name)) continue;
    const Timing of_part = TimingOf(parts[part.name]);
    BenchEntry entry{.name = Concat("  ", part.label),
                     .value = of_part.seconds * 1e3,
                     .unit = "ms",
                     .spread = of_part.spread};
    if (part.name == std::string("weights")) {
      entry.fraction = transfer / of_part.seconds;
      entry.limit = "pinned copy";
    }
    bench.report.Add(std::move(entry));
  }
  return {};
}

Status LoadFormat(BenchContext& bench, const std::string& name, DType dtype, const std::string& folder) {
  const std::string path = Concat(folder, "/terrace-bench-", ::getpid(), ".gguf");
  ThreadPool pool(std::max(1u, std::thread::hardware_concurrency()));
  const MonoTime begin = RealClock().Now();
  Status status = WriteLargeModel(path, BenchConfig(), dtype, pool);
  std::printf("%s: %.1f s to write\n", path.c_str(), Seconds(RealClock().Now() - begin));
  if (status.ok()) status = MeasureLoad(bench, name, path);
  ::unlink(path.c_str());
  return status;
}

}  // namespace

Status BenchLoad(BenchContext& bench, const std::string& folder) {
  if (folder.empty()) return {};
  for (const auto& [name, dtype] : {std::pair("8B INT4", DType::kQ4_0), std::pair("8B bf16", DType::kBF16)}) {
    if (!bench.report.HasTime(name)) continue;
    RETURN_IF_ERROR(bench.report.SkipOr(name, LoadFormat(bench, name, dtype, folder)));
  }
  return {};
}

Status PrintFirstToken(const std::string& model) {
  OpenEngineOptions options;
  options.model = model;
  options.device = "cuda";
  options.find_device = LinkedBackend;
  ASSIGN_OR_RETURN(OpenedEngine opened, OpenEngine(options));
  ASSIGN_OR_RETURN(const double first, SecondsToToken(opened));
  std::printf("a token\n");
  std::fflush(stdout);
  ASSIGN_OR_RETURN(const double second, SecondsToToken(opened));
  ASSIGN_OR_RETURN(const double third, SecondsToToken(opened));
  const LoadTimes& t = opened.load_times;
  const Json json = {{"open", t.open}, {"device", t.device}, {"weights", t.weights},
                     {"read", t.read}, {"wait", t.wait},     {"executor", t.executor},
                     {"first", first}, {"second", second},   {"third", third}};
  std::printf("%s\n", ToJsonText(json).c_str());
  return {};
}

}  // namespace terrace
