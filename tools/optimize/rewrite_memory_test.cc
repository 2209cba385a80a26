// How much memory quantizing and pruning take: each job runs in a process of its own that gets no more
// private memory than docs/how-to/quantize.md says, and ends with std::bad_alloc or RESOURCE_EXHAUSTED if it
// wants more. Files that are mapped do not count.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "gtest/gtest.h"
#include "tools/optimize/model_shapes.h"
#include "tools/optimize/prune.h"
#include "tools/optimize/quantize.h"
#include "tools/optimize/synthesize.h"
#include "tools/optimize/synthetic_text.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr size_t kThreads = 2;
constexpr uint64_t kMiB = 1 << 20;
// Stacks of threads (address space of 8 MiB each), what allocators keep, the tokenizer, JSON.
constexpr uint64_t kRest = 8 * kMiB * kThreads + 24 * kMiB;
constexpr size_t kRowTokens = 64;

// Ends the process that it is called in when it takes more.
void LimitMemory(uint64_t more_bytes) {
  std::ifstream status("/proc/self/status");
  uint64_t kibibytes = 0;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmData:")) kibibytes = std::stoull(line.substr(7));
  }
  CHECK(kibibytes > 0, "no VmData");
  const rlimit limit = {.rlim_cur = kibibytes * 1024 + more_bytes, .rlim_max = RLIM_INFINITY};
  CHECK(::setrlimit(RLIMIT_DATA, &limit) == 0);
}

class RewriteMemory : public testing::Test {
 protected:
  RewriteMemory() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  ~RewriteMemory() override { fs::remove_all(folder_); }

  void MakeModel(const ShapeChanges& shape, uint32_t experts = 0) {
    config_ = ChangeShape(FindModelShape("135m").value(), shape).value();
    if (experts > 0) {
      config_.family = "mixtral";
      config_.experts = experts;
      config_.experts_per_token = 2;
      config_.normalizes_experts = true;
    }
    ModelToSynthesize model;
    model.path = folder_ / "model";
    model.format = ModelFormat::kSafetensors;
    model.config = config_;
    model.text = ByteLevelText();
    CHECK(Synthesize(model).ok());
  }
  void WriteText(size_t tokens) {
    std::ofstream file(folder_ / "rows.jsonl");
    for (size_t row = 0; row < tokens / kRowTokens; ++row) {
      std::string text = Concat("row ", row, ": ");
      while (text.size() < kRowTokens) text += static_cast<char>('a' + (text.size() * (row + 3)) % 26);
      file << "{\"text\": \"" << text << "\"}\n";  // cut to the context
    }
  }

  // docs/how-to/quantize.md, "Memory".
  uint64_t Documented() const {
    const uint64_t hidden = config_.hidden_size, ffn = config_.ffn_size,
                   heads = uint64_t{config_.heads} * config_.head_dim,
                   kv_heads = uint64_t{config_.kv_heads} * config_.head_dim,
                   inputs = std::max({hidden, ffn, heads});
    const uint64_t layer = 4 * (2 * hidden * (heads + kv_heads) + 3 * hidden * ffn);
    const uint64_t piece = 4 * kPieceTokens * (2 * hidden + std::max(2 * (heads + kv_heads), ffn));
    return 2 * layer + 3 * 8 * inputs * inputs + piece + kRest;
  }
  // What all tokens take between layers and within one, which is not to be in memory.
  uint64_t Activations(size_t tokens) const {
    return 4 * tokens * (uint64_t{config_.hidden_size} + config_.ffn_size);
  }

  // Runs `job` with that much memory. Tells what it took at most.
  void RunWith(uint64_t bytes, const std::string& name, const std::function<Status()>& job) {
    const pid_t child = ::fork();
    CHECK(child >= 0);
    if (child == 0) {
      LimitMemory(bytes);
      const Status status = job();
      if (!status.ok()) std::fprintf(stderr, "%s: %s\n", name.c_str(), Message(status).c_str());
      ::_exit(status.ok() ? 0 : 1);
    }
    int result = 0;
    rusage used = {};
    CHECK(::wait4(child, &result, 0, &used) == child);
    EXPECT_TRUE(WIFEXITED(result) && WEXITSTATUS(result) == 0)
        << name << " with " << bytes << " bytes ended with " << result;
    RecordProperty(name + "_most_resident_kib", static_cast<int>(used.ru_maxrss));
  }

  template <typename Request>
  Request Calibrated(const std::string& name) const {
    Request request;
    request.model = folder_ / "model";
    request.out = folder_ / name;
    request.calibration = {.path = folder_ / "rows.jsonl"};
    request.threads = kThreads;
    return request;
  }
  std::function<Status()> Quantizes(const std::string& method, const QuantizeBudget& budget = {}) const {
    QuantizeRequest request = Calibrated<QuantizeRequest>(method);
    request.target = *std::ranges::find(kQuantizeTargets, method == "smoothquant" ? "int8" : "int4-g64",
                                        &QuantizeTarget::name);
    request.method = *std::ranges::find(kQuantizeMethods, method, &QuantizeMethod::name);
    request.budget = budget;
    return [request] { return Quantize(request).status(); };
  }
  std::function<Status()> PrunesWeights(const std::string& method) const {
    PruneRequest request = Calibrated<PruneRequest>(method);
    request.method = *std::ranges::find(kPruneMethods, method, &PruneMethod::name);
    request.pattern = {.kept = 2, .of = 4};
    return [request] { return Prune(request).status(); };
  }
  std::function<Status()> Cuts(const Cut& cut) const {
    PruneRequest request = Calibrated<PruneRequest>("cut");
    request.cut = cut;
    return [request] { return Prune(request).status(); };
  }

  const fs::path folder_ = fs::path(testing::TempDir()) / "rewrite_memory";
  ModelConfig config_;
};

TEST_F(RewriteMemory, EightTimesTheTextTakesNoMore) {
  MakeModel({.layers = 2,
             .hidden = 128,
             .heads = 4,
             .kv_heads = 2,
             .ffn = 256,
             .vocab = 320,
             .context = kRowTokens});
  for (const size_t tokens : {8'192, 65'536}) {
    SCOPED_TRACE(tokens);
    WriteText(tokens);
    const struct {
      const char* name;
      std::function<Status()> job;
    } jobs[] = {{"rtn", Quantizes("rtn")},
                {"gptq", Quantizes("gptq")},
                {"awq", Quantizes("awq")},
                {"smoothquant", Quantizes("smoothquant")},
                {"sparsegpt", PrunesWeights("sparsegpt")},
                {"magnitude", PrunesWeights("magnitude")},
                {"ffn and heads", Cuts({.ffn_share = 0.25, .kv_heads = 1})},
                {"hidden", Cuts({.hidden = 32})}};
    for (const auto& [name, job] : jobs) {
      RunWith(Documented(), name, job);
      for (const auto& entry : fs::directory_iterator(folder_)) {
        if (entry.path().filename() != "model" && entry.path().filename() != "rows.jsonl")
          fs::remove_all(entry.path());
      }
    }
  }
  EXPECT_GT(Activations(65'536), Documented() + 32 * kMiB);  // else this tells nothing
}

// Its experts are all there, and once more while they are passed.
TEST_F(RewriteMemory, ALayerOfExpertsIsThereTwiceAndAsItIsWritten) {
  constexpr uint32_t kExperts = 96;
  MakeModel({.layers = 1,
             .hidden = 256,
             .heads = 4,
             .kv_heads = 2,
             .ffn = 256,
             .vocab = 320,
             .context = kRowTokens},
            kExperts);
  constexpr size_t kTokens = 2'048;
  WriteText(kTokens);
  const uint64_t matrix = uint64_t{config_.hidden_size} * config_.ffn_size,
                 more = 3 * (kExperts - 1) * matrix;
  const uint64_t width = 2 * uint64_t{config_.hidden_size} + config_.ffn_size;
  const uint64_t of_experts = 2 * 4 * more + 2 * 4 * kPieceTokens * width + 2 * 8 * kTokens;
  const uint64_t written = (3 * kExperts + 4) * matrix * 5 / 8;  // of 5 bits a weight, at most
  RunWith(Documented() + of_experts + written, "gptq", Quantizes("gptq"));
  EXPECT_GT(4 * more, kRest + 16 * kMiB);  // else this tells nothing
}

// Room is reserved for a layer as it is written while its matrices are still there.
TEST_F(RewriteMemory, WithoutTextALayerIsNotInF32) {
  MakeModel({.layers = 2,
             .hidden = 256,
             .heads = 4,
             .kv_heads = 2,
             .ffn = 512,
             .vocab = 320,
             .context = kRowTokens},
            /*experts=*/64);
  QuantizeRequest request;
  request.model = folder_ / "model";
  request.out = folder_ / "out";
  request.target = kQuantizeTargets[0];
  request.method = kQuantizeMethods[0];
  request.threads = kThreads;
  CHECK(request.target.name == "int4-g32" && request.method.name == "rtn");
  const uint64_t matrix = uint64_t{config_.hidden_size} * config_.ffn_size, layer = 3 * 64 * matrix;
  const uint64_t limit = 3 * 4 * matrix + 2 * layer * Info(request.target.dtype).block_bytes / 32 + kRest;
  RunWith(limit, "experts", [&] { return Quantize(request).status(); });
  EXPECT_GT(4 * layer, limit + 16 * kMiB);  // else this tells nothing
}

}  // namespace
}  // namespace terrace
