// From the start of a process to a model's first token, as terrace-worker and the CLI load it: a process of
// its own for each measurement, so that it pays for the driver's start, the libraries and what CUDA loads
// lazily. The files are of Llama 3.1 8B's shape, just written: in the page cache.
// Files of GGUF, and folders that `terrace quantize` makes of one.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/json.h"
#include "tests/gpu/bench_model.h"
#include "tests/gpu/large_model.h"
#include "tools/optimize/quantize.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/open_engine.h"

extern "C" const terrace::DeviceBackend* terrace_device_backend();

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr uint32_t kPromptTokens = 128;
unsigned HardwareThreads() { return std::max(1u, std::thread::hardware_concurrency()); }

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

struct Model {
  std::string path;  // a file or a folder
  std::string compute = "auto";
};

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
StatusOr<Json> LoadOnce(const Model& model, double& seconds) {
  const std::string command = Concat("exec '", fs::read_symlink("/proc/self/exe").string(),
                                     "' --first-token '", model.path, "' --compute ", model.compute);
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

uint64_t BytesOf(const std::string& path) {
  if (!fs::is_directory(path)) return fs::file_size(path);
  uint64_t bytes = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(path)) bytes += entry.file_size();
  return bytes;
}

Status MeasureLoad(BenchContext& bench, const std::string& name, const Model& model) {
  const auto bytes = static_cast<double>(BytesOf(model.path));
  const double transfer = bytes / bench.limits.to_device;
  std::vector<double> seconds;
  std::map<std::string, std::vector<double>> parts;
  for (int round = 0; round < (bench.is_quick ? 1 : 3); ++round) {
    double one = 0;
    ASSIGN_OR_RETURN(const Json found, LoadOnce(model, one));
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

// A file or a folder, removed at the end.
class Written {
 public:
  explicit Written(std::string path) : path_(std::move(path)) { Remove(); }
  ~Written() { Remove(); }
  const std::string& path() const { return path_; }

 private:
  void Remove() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }

  const std::string path_;
};

Status WriteGguf(const std::string& path, DType dtype) {
  ThreadPool pool(HardwareThreads());
  const MonoTime begin = RealClock().Now();
  RETURN_IF_ERROR(WriteLargeModel(path, BenchConfig(), dtype, pool));
  std::printf("%s: %.1f s to write\n", path.c_str(), Seconds(RealClock().Now() - begin));
  return {};
}

Status LoadFormat(BenchContext& bench, const std::string& name, DType dtype, const std::string& folder) {
  const Written model(Concat(folder, "/terrace-bench-", ::getpid(), ".gguf"));
  RETURN_IF_ERROR(WriteGguf(model.path(), dtype));
  return MeasureLoad(bench, name, {model.path()});
}

Status LoadQuantized(BenchContext& bench, const std::string& name, const std::string& source,
                     const QuantizeTarget& target, const std::string& compute) {
  const Written made(Concat(source, "-", target.name));  // a folder, for the report beside the model too
  fs::create_directory(made.path());
  QuantizeRequest request;
  request.model = source;
  request.out = made.path() + "/model";
  request.target = target;
  request.method = kQuantizeMethods[0];  // rtn: what takes no calibration
  request.threads = HardwareThreads();
  const MonoTime begin = RealClock().Now();
  RETURN_IF_ERROR(Quantize(request).status());
  std::printf("%s: %.1f s to quantize\n", request.out.c_str(), Seconds(RealClock().Now() - begin));
  return MeasureLoad(bench, name, {request.out, compute});
}

// False, with a row that says so, without one.
bool HasFolder(BenchContext& bench, const std::string& name, const std::string& folder) {
  if (folder.empty()) bench.report.Skip(name, "without --load-folder no model is written and loaded");
  return !folder.empty();
}

}  // namespace

Status BenchLoad(BenchContext& bench, const std::string& folder) {
  for (const auto& [name, dtype] : {std::pair("8B INT4", DType::kQ4_0), std::pair("8B bf16", DType::kBF16)}) {
    if (!HasFolder(bench, name, folder) || !bench.report.HasTime(name)) continue;
    RETURN_IF_ERROR(bench.report.SkipOr(name, LoadFormat(bench, name, dtype, folder)));
  }
  return {};
}

Status BenchLoadFolders(BenchContext& bench, const std::string& folder) {
  std::optional<Written> source;  // what both are made of
  for (const auto& [target, compute] : {std::pair("int4-g128", "auto"), std::pair("fp8", "fp8")}) {
    const std::string name = Concat("8B folder of ", target);
    if (!HasFolder(bench, name, folder) || !bench.report.HasTime(name)) continue;
    if (!source) {
      source.emplace(Concat(folder, "/terrace-bench-", ::getpid(), ".gguf"));
      RETURN_IF_ERROR(WriteGguf(source->path(), DType::kBF16));
    }
    const auto found = std::ranges::find(kQuantizeTargets, std::string_view(target), &QuantizeTarget::name);
    RETURN_IF_ERROR(bench.report.SkipOr(name, LoadQuantized(bench, name, source->path(), *found, compute)));
  }
  return {};
}

Status PrintFirstToken(const std::string& model, const std::string& compute) {
  OpenEngineOptions options;
  options.model = model;
  options.compute = compute;
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
