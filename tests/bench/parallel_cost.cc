// The cost model of tensor and pipeline parallelism (tools/plan/parallel_cost.h) against runs: steps of a
// synthesized model on 1, 2, 4 ranks of this machine and on a pipeline of 2, which share its cores, are
// threads of this process and connected by --transport. Predicted in two ways:
//
//   from one rank  the steps of one rank, measured, and sums over the ranks, measured on their own: what
//                  `terrace plan --ranks` does; not of pipelines, which it does not plan
//   roofline       the machine's read bandwidth and int8 rate, measured and shared out over the ranks (of a
//                  pipeline those of a stage's own cores, as stages often run alone), and messages of the
//                  same cost: what `terrace inspect --fit` does, with measured figures for a data sheet's
//
// Splits are run one after the other; a machine that does other work meanwhile shows in the errors.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/machine.h"
#include "tests/bench/fill_kv.h"
#include "tests/bench/machine_limits.h"
#include "tools/optimize/model_shapes.h"
#include "tools/optimize/synthesize.h"
#include "tools/optimize/synthetic_text.h"
#include "tools/plan/parallel_cost.h"
#include "worker/formats/model_files.h"
#include "worker/model/transformer.h"
#include "worker/parallel/collective_probe.h"
#include "worker/parallel/local_communicator.h"
#include "worker/parallel/on_each_rank.h"
#include "worker/parallel/socket_group.h"

namespace terrace {
namespace {

constexpr Duration kTimeout = std::chrono::seconds(120);
constexpr uint32_t kBlockTokens = 16, kMaxSequences = 16;

struct Flags {
  std::string model;  // "": one is synthesized
  std::string transport = "tcp";
  uint32_t threads = 0, steps = 15;
  std::vector<uint32_t> ranks = {1, 2, 4}, stages = {2};
};

// One kind of step: sequences that are all alike.
struct Work {
  uint32_t sequences = 1, tokens = 1, context = 0;

  std::string name() const {
    return tokens == 1 ? Concat("decode ", sequences, " at ", context) : Concat("prefill ", tokens);
  }
  StepWork work() const {
    if (tokens == 1) return {.decode_tokens = sequences, .decode_context = 1.0 * sequences * context};
    return {.prefill_tokens = tokens, .prefill_context = tokens * (context + tokens / 2.0)};
  }
};
// The first ones are what the curve of one rank is made of; all are predicted.
constexpr Work kWorks[] = {{.sequences = 1, .context = 48},
                           {.sequences = 4, .context = 48},
                           {.sequences = 16, .context = 48},
                           {.tokens = 32},
                           {.tokens = 128},
                           {.tokens = 256},
                           {.sequences = 1, .context = 1000},
                           {.sequences = 8, .context = 1000}};

uint32_t BlocksOf(const Work& work) { return (work.context + work.tokens + kBlockTokens - 1) / kBlockTokens; }

// One rank's model and KV pool.
class Rank {
 public:
  Rank(const ModelFiles& files, uint32_t threads, Communicator* communicator, uint32_t stages)
      : pool_(threads) {
    auto loaded = Transformer::Load(files.config, *files.weights, CpuOps(), pool_,
                                    {.communicator = communicator, .stages = stages});
    CHECK(loaded.ok(), Message(loaded.status()));
    model_ = *std::move(loaded);
    uint32_t blocks = 0;
    for (const Work& work : kWorks) blocks = std::max(blocks, work.sequences * BlocksOf(work));
    auto kv = KvPool::Create({.layers = static_cast<uint32_t>(model_->plan().layers.size()),
                              .kv_heads = static_cast<uint32_t>(model_->plan().kv_heads.size()),
                              .head_dim = files.config.head_dim,
                              .block_tokens = kBlockTokens,
                              .blocks = blocks});
    CHECK(kv.ok(), Message(kv.status()));
    kv_ = *std::move(kv);
    FillKv(*kv_);
    blocks_.resize(blocks);
    std::iota(blocks_.begin(), blocks_.end(), 0);
    tokens_.resize(std::ranges::max_element(kWorks, {}, &Work::tokens)->tokens, 1);
  }

  double Seconds(const Work& work) {
    Batch batch;
    for (uint32_t i = 0; i < work.sequences; ++i) {
      batch.sequences.push_back(
          {.tokens = std::span<const int32_t>(tokens_).first(work.tokens),
           .first_position = work.context,
           .blocks = std::span<const BlockId>(blocks_).subspan(i * BlocksOf(work), BlocksOf(work)),
           .logits = 1});
    }
    const MonoTime begin = RealClock().Now();
    const auto logits = model_->Forward(batch, *kv_);
    CHECK(logits.ok(), Message(logits.status()));
    return terrace::Seconds(RealClock().Now() - begin);
  }

 private:
  ThreadPool pool_;
  std::unique_ptr<Transformer> model_;
  std::unique_ptr<KvPool> kv_;
  std::vector<BlockId> blocks_;
  std::vector<int32_t> tokens_;
};

StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeGroup(const Flags& flags, uint32_t ranks) {
  if (flags.transport == "threads") return MakeLocalCommunicators(ranks, kTimeout);
  ASSIGN_OR_RETURN(const Transport transport, ParseTransport(flags.transport));
  return MakeSocketGroup(ranks, kTimeout, transport);
}

// Median seconds of each of kWorks, as rank 0 has them.
std::vector<double> Measure(const ModelFiles& files, const Flags& flags, const ParallelDegrees& degrees) {
  const uint32_t ranks = degrees.ranks();
  std::vector<std::unique_ptr<Communicator>> group(ranks);
  if (ranks > 1) group = MakeGroup(flags, ranks).value();
  std::vector<double> medians(std::size(kWorks));
  OnEachRank(ranks, [&](uint32_t number) {
    Rank rank(files, std::max(flags.threads / ranks, 1u), group[number].get(), degrees.pipeline);
    for (size_t i = 0; i < std::size(kWorks); ++i) {
      std::vector<double> seconds;
      rank.Seconds(kWorks[i]);  // warms up
      for (uint32_t step = 0; step < flags.steps; ++step) seconds.push_back(rank.Seconds(kWorks[i]));
      std::ranges::sort(seconds);
      if (number == 0) medians[i] = seconds[seconds.size() / 2];
    }
  });
  return medians;
}

StepCost CostOfOneRank(const std::vector<double>& seconds) {
  std::vector<StepSample> samples;
  for (size_t i = 0; i < std::size(kWorks); ++i)
    samples.push_back({.work = kWorks[i].work(), .seconds = seconds[i]});
  return StepCost::Fit(samples).value();
}

void PrintError(double predicted, double measured) {
  std::printf(" %12.3f %8.1f%%", predicted * 1e3, 100 * (predicted / measured - 1));
}

void PrintErrors(const char* what, std::vector<double> errors) {
  if (errors.empty()) return;
  std::ranges::sort(errors);
  std::printf("%s: error %.1f%% in the median, %.1f%% at most, of %zu steps on several ranks\n", what,
              100 * errors[errors.size() / 2], 100 * errors.back(), errors.size());
}

class Comparison {
 public:
  Comparison(const ModelFiles& files, const Flags& flags) : files_(files), flags_(flags) {}

  Status Run() {
    ASSIGN_OR_RETURN(shape_, ShapeOf(files_.config, *files_.weights));
    limits_ = LimitsMeter(flags_.threads).Measure();
    std::printf("%u threads; reads %.1f GB/s, int8 %.0f GOP/s\n", flags_.threads, limits_.read_bytes / 1e9,
                limits_.int8 / 1e9);
    std::vector<ParallelDegrees> splits;
    for (const uint32_t ranks : flags_.ranks) splits.push_back({.tensor = ranks});
    for (const uint32_t stages : flags_.stages) splits.push_back({.pipeline = stages});
    for (const ParallelDegrees& split : splits) RETURN_IF_ERROR(SplitModel(shape_, split).status());
    one_ = Measure(files_, flags_, {});
    for (const ParallelDegrees& split : splits) RETURN_IF_ERROR(Compare(split));
    PrintErrors("tensor parallel, from one rank", from_one_errors_);
    PrintErrors("tensor parallel, roofline", roofline_errors_);
    PrintErrors("pipeline, roofline", pipeline_errors_);
    return {};
  }

 private:
  Status Compare(const ParallelDegrees& degrees) {
    const uint32_t ranks = degrees.ranks();
    const bool is_pipeline = degrees.pipeline > 1;
    ASSIGN_OR_RETURN(const ModelSplit split, SplitModel(shape_, degrees));
    LinkCost link;
    if (ranks > 1) {
      ASSIGN_OR_RETURN(const auto group, MakeGroup(flags_, ranks));
      ASSIGN_OR_RETURN(const std::vector<SumSample> sums, MeasureSums(group));
      ASSIGN_OR_RETURN(link, FitLink(sums, ranks));
      std::printf("%u %s: a message of n bytes takes %.1f us + n / %.2f GB/s\n", ranks,
                  is_pipeline ? "stages" : "ranks", link.round_seconds * 1e6, 1e-9 / link.seconds_per_byte);
    }
    const std::vector<double> measured = ranks == 1 ? one_ : Measure(files_, flags_, degrees);
    std::optional<StepCost> from_one;
    if (!is_pipeline) from_one = CostOnRanks(CostOfOneRank(one_), split, files_.config, link, kMaxSequences);
    const DeviceSpec device = DeviceOf(degrees, link);
    std::printf("%6s  %-16s %12s %12s %9s%s\n", is_pipeline ? "stages" : "ranks", "step", "measured, ms",
                "roofline, ms", "error", is_pipeline ? "" : " from one, ms     error");
    for (size_t i = 0; i < std::size(kWorks); ++i) {
      const Work& work = kWorks[i];
      const double roofline =
          EstimateStep(split, files_.config, device, KvDType::kF32,
                       {.sequences = work.sequences, .tokens = work.tokens, .context = work.context})
              .seconds;
      std::printf("%6u  %-16s %12.3f", ranks, work.name().c_str(), measured[i] * 1e3);
      PrintError(roofline, measured[i]);
      if (from_one.has_value()) PrintError(from_one->Seconds(work.work()), measured[i]);
      std::printf("\n");
      std::fflush(stdout);
      if (ranks == 1) continue;
      (is_pipeline ? pipeline_errors_ : roofline_errors_).push_back(std::abs(roofline / measured[i] - 1));
      if (from_one.has_value())
        from_one_errors_.push_back(std::abs(from_one->Seconds(work.work()) / measured[i] - 1));
    }
    return {};
  }

  // Ranks of one stage work at once, and share what memory gives; of a pipeline only the stages that have
  // something to do.
  DeviceSpec DeviceOf(const ParallelDegrees& degrees, const LinkCost& link) const {
    const uint32_t ranks = degrees.ranks();
    const bool is_pipeline = degrees.pipeline > 1;
    const MachineLimits limits =
        is_pipeline ? LimitsMeter(std::max(flags_.threads / ranks, 1u)).Measure() : limits_;
    const uint32_t sharers = is_pipeline ? 1 : ranks;
    return {.name = "this machine",
            .bytes_per_second = limits.read_bytes / sharers,
            .operations_per_second = limits.int8 / sharers,
            .link = link,
            .activation_bytes = sizeof(float)};
  }

  const ModelFiles& files_;
  const Flags& flags_;
  ModelShape shape_;
  MachineLimits limits_;
  std::vector<double> one_;  // of one rank
  std::vector<double> from_one_errors_, roofline_errors_, pipeline_errors_;
};

// About 170 million parameters in Q8_0, that four ranks can share out.
Status SynthesizeModel(const std::string& path, uint32_t threads) {
  ModelToSynthesize request;
  request.path = path;
  request.dtype = DType::kQ8_0;
  request.text = ByteLevelText();
  request.threads = threads;
  ASSIGN_OR_RETURN(const ModelConfig known, FindModelShape("1b"));
  ASSIGN_OR_RETURN(request.config, ChangeShape(known, {.layers = 12,
                                                       .hidden = 1024,
                                                       .heads = 16,
                                                       .kv_heads = 4,
                                                       .head_dim = 64,
                                                       .ffn = 2816,
                                                       .vocab = 32'000,
                                                       .context = 4096,
                                                       .tied = true}));
  return Synthesize(request).status();
}

Status Run(Flags flags) {
  if (flags.threads == 0) flags.threads = UsableCores();
  if (!flags.model.empty()) {
    ASSIGN_OR_RETURN(const ModelFiles files, OpenWeights(flags.model));
    return Comparison(files, flags).Run();
  }
  const std::string path =
      std::filesystem::temp_directory_path() / Concat("terrace-parallel-cost-", getpid(), ".gguf");
  RETURN_IF_ERROR(SynthesizeModel(path, flags.threads));
  const auto files = OpenWeights(path);
  std::filesystem::remove(path);  // what is mapped stays
  return files.ok() ? Comparison(*files, flags).Run() : files.status();
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  terrace::Flags flags;
  CLI::App app("The cost model of tensor and pipeline parallelism against runs on this machine");
  app.add_option("--model", flags.model, "a .gguf file or a model folder (default: one is synthesized)");
  app.add_option("--threads", flags.threads, "of all ranks together (default: all cores)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--steps", flags.steps, "that are measured of each kind")->check(CLI::Range(1, 10000));
  app.add_option("--ranks", flags.ranks, "numbers of ranks that share each layer")
      ->delimiter(',')
      ->check(CLI::Range(1, 64));
  app.add_option("--stages", flags.stages, "numbers of stages of pipelines of one rank each")
      ->delimiter(',')
      ->check(CLI::Range(2, 64));
  app.add_option("--transport", flags.transport, "that connects ranks: tcp, gloo, or threads (by memory)")
      ->check(CLI::IsMember({"tcp", "gloo", "threads"}));
  CLI11_PARSE(app, argc, argv);
  std::signal(SIGPIPE, SIG_IGN);  // of Gloo
  const terrace::Status status = terrace::Run(flags);
  if (!status.ok()) std::fprintf(stderr, "%s\n", terrace::Message(status).c_str());
  return status.ok() ? 0 : 1;
}
