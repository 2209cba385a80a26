// Passes of a whole model against the limits of the machine: prefill, decode, batched decode, decode behind a
// long context. Limits are measured before each figure, in the same process; every figure is printed as a
// rate, as a fraction of its limit, with the spread of the rounds.
//
//   decode    bytes of the matrices and of the KV cache that a step reads, against read bandwidth
//   prefill   2 operations for each weight of the layers and token, against the rate of the dot product
//             that the weights use
//   batch     tokens per second against the smaller of batch x the decode limit and (quantized) half the
//             int8 rate
//   context   the time that attention adds to a step, as KV bytes per second against read bandwidth
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <numeric>
#include <random>

#include "base/clock.h"
#include "base/exit_code.h"
#include "base/json.h"
#include "tests/bench/fill_kv.h"
#include "tests/bench/machine_limits.h"
#include "worker/formats/model_files.h"
#include "worker/formats/tensor_names.h"
#include "worker/model/transformer.h"

namespace terrace {
namespace {

struct Flags {
  std::string model, kv = "f16", json;
  size_t threads = 1, rounds = 7, decode_tokens = 64;
  uint32_t virtual_shards = 1;
  std::vector<uint32_t> prefill = {128, 512}, batch = {4, 8, 16, 32}, context = {};
};

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// What one weight of each matrix costs.
struct ModelCost {
  double layer_weights = 0, output_weights = 0;  // elements
  double bytes = 0;                              // of all matrices that a decode step of one token reads
  DType main = DType::kF32;                      // the dtype of most bytes of the layers
};

ModelCost CostOf(const ModelFiles& files) {
  ModelCost cost;
  std::map<DType, double> layers;
  for (const TensorRequirement& required : RequiredTensors(files.config)) {
    const auto tensor = files.weights->Find(required.name);
    if (!tensor.ok() || IsNorm(required.kind)) continue;
    // Of experts a token has some; those of a batch are other ones, at random.
    const ModelConfig& config = files.config;
    const double part = config.experts > 0 && IsPerExpert(required.kind)
                            ? static_cast<double>(config.experts_per_token) / config.experts
                            : 1;
    const double elements = part * static_cast<double>(*ElementCount(tensor->shape));
    const double bytes = part * static_cast<double>(tensor->bytes);
    const bool is_output = required.kind == TensorKind::kOutput ||
                           (required.kind == TensorKind::kEmbedding && files.config.tied_embeddings);
    if (required.kind == TensorKind::kEmbedding && !is_output) continue;
    cost.bytes += bytes;
    (is_output ? cost.output_weights : cost.layer_weights) += elements;
    if (!is_output) layers[tensor->dtype] += bytes;
  }
  cost.main = std::ranges::max_element(layers, {}, [](const auto& entry) { return entry.second; })->first;
  return cost;
}

double ComputeLimit(const MachineLimits& limits, DType dtype) {
  if (dtype == DType::kF32) return limits.f32;
  if (dtype == DType::kF16 || dtype == DType::kBF16) return limits.bf16.value_or(limits.f32);
  return limits.int8;
}

struct Figure {
  std::vector<double> rates, fractions;
};

class Bench {
 public:
  Bench(const Flags& flags, const ModelFiles& files)
      : flags_(flags), files_(files), cost_(CostOf(files)), pool_(flags.threads), meter_(flags.threads) {}

  Status Open() {
    const MonoTime begin = RealClock().Now();
    ASSIGN_OR_RETURN(model_, Transformer::Load(files_.config, *files_.weights, CpuOps(), pool_,
                                               {.virtual_shards = flags_.virtual_shards}));
    load_seconds_ = Seconds(RealClock().Now() - begin);
    const auto most = [](const std::vector<uint32_t>& values) {
      return values.empty() ? 0u : *std::ranges::max_element(values);
    };
    const uint32_t steps = static_cast<uint32_t>(flags_.decode_tokens) + kPrompt + 1;
    const uint32_t tokens = std::max({most(flags_.prefill), most(flags_.batch) * RoundUp(steps),
                                      most(flags_.context) + RoundUp(steps), RoundUp(steps)});
    ASSIGN_OR_RETURN(const KvDType dtype, ParseKvDType(flags_.kv));
    ASSIGN_OR_RETURN(kv_, KvPool::Create({.layers = files_.config.layers,
                                          .kv_heads = files_.config.kv_heads,
                                          .head_dim = files_.config.head_dim,
                                          .block_tokens = 16,
                                          .blocks = tokens / 16 + 2,
                                          .dtype = dtype}));
    FillKv(*kv_);
    blocks_.resize(kv_->shape().blocks);
    std::iota(blocks_.begin(), blocks_.end(), 0);
    std::mt19937 random(1);
    tokens_.resize(tokens);
    for (int32_t& token : tokens_) {
      token = static_cast<int32_t>(random() % std::min<uint32_t>(files_.config.vocab_size, 30000));
    }
    return Status();
  }

  void WarmUp() { Step(1, 0, std::min<uint32_t>(128, static_cast<uint32_t>(tokens_.size()) / 2), 0, true); }

  void Round() {
    const double cpu = CpuSeconds();
    const MonoTime begin = RealClock().Now();
    for (const uint32_t tokens : flags_.prefill) Prefill(tokens);
    Decode(1);
    for (const uint32_t batch : flags_.batch) Decode(batch);
    for (const uint32_t context : flags_.context) Context(context);
    const double busy = (CpuSeconds() - cpu) / Seconds(RealClock().Now() - begin);
    busy_.push_back(busy / static_cast<double>(flags_.threads));
  }

  Json Report() const {
    Json out = {{"model", files_.config.name.empty() ? flags_.model : files_.config.name},
                {"dtype", std::string(Info(cost_.main).name)},
                {"threads", flags_.threads},
                {"kernels", std::string(CpuOps().name)},
                {"load_seconds", load_seconds_},
                {"cpu_share", busy_},
                {"figures", Json::object()},
                {"limits", Json::array()}};
    for (const MachineLimits& limits : all_limits_) {
      out["limits"].push_back({{"read_bytes", limits.read_bytes},
                               {"f32", limits.f32},
                               {"int8", limits.int8},
                               {"bf16", limits.bf16.value_or(0)}});
    }
    for (const auto& [name, figure] : figures_) {
      out["figures"][name] = {{"tokens_per_second", figure.rates}, {"fraction_of_limit", figure.fractions}};
    }
    return out;
  }

  void Print() const {
    const auto spread = [](std::vector<double> values) {
      std::ranges::sort(values);
      return std::array{values[values.size() / 2], values.front(), values.back()};
    };
    std::printf("%s, %s, %zu threads, %s; loaded in %.2f s\n", flags_.model.c_str(),
                std::string(Info(cost_.main).name).c_str(), flags_.threads,
                std::string(CpuOps().name).c_str(), load_seconds_);
    std::vector<double> read, compute;
    for (const MachineLimits& limits : all_limits_) {
      read.push_back(limits.read_bytes / 1e9);
      compute.push_back(ComputeLimit(limits, cost_.main) / 1e9);
    }
    std::printf(
        "limits: read %.1f GB/s (%.1f to %.1f), compute %.0f GOP/s (%.0f to %.0f); processor share %.2f\n",
        spread(read)[0], spread(read)[1], spread(read)[2], spread(compute)[0], spread(compute)[1],
        spread(compute)[2], spread(busy_)[1]);
    std::printf("%-16s %10s %22s %10s %16s\n", "", "tok/s", "", "of limit", "");
    for (const auto& [name, figure] : figures_) {
      const auto rate = spread(figure.rates), fraction = spread(figure.fractions);
      std::printf("%-16s %10.1f (%8.1f to %8.1f) %8.2f (%.2f to %.2f)\n", name.c_str(), rate[0], rate[1],
                  rate[2], fraction[0], fraction[1], fraction[2]);
    }
  }

 private:
  static constexpr uint32_t kPrompt = 16;  // positions before a decode
  static uint32_t RoundUp(uint32_t tokens) { return (tokens + 15) / 16 * 16; }

  double KvBytesPerPosition() const {
    return static_cast<double>(kv_->shape().BlockBytes()) / kv_->shape().block_tokens;
  }
  void Add(const std::string& name, double rate, double limit) {
    figures_[name].rates.push_back(rate);
    figures_[name].fractions.push_back(rate / limit);
  }

  // One step of `batch` sequences of `count` tokens each at `position`; `stride` blocks apart.
  void Step(uint32_t batch, uint32_t position, uint32_t count, uint32_t stride, bool logits) {
    Batch step;
    for (uint32_t i = 0; i < batch; ++i) {
      step.sequences.push_back(
          {.tokens = std::span(tokens_).subspan((i * 7 + position) % (tokens_.size() - count + 1), count),
           .first_position = position,
           .blocks = std::span(blocks_).subspan(i * stride, blocks_.size() - i * stride),
           .logits = logits ? 1u : 0u});
    }
    CHECK(model_->Forward(step, *kv_).ok());
  }

  void MeasureLimits() {
    limits_ = meter_.Measure();
    all_limits_.push_back(limits_);
  }

  void Prefill(uint32_t tokens) {
    MeasureLimits();
    const MonoTime begin = RealClock().Now();
    Step(1, 0, tokens, 0, true);
    const double rate = tokens / Seconds(RealClock().Now() - begin);
    Add(Concat("prefill ", tokens), rate, ComputeLimit(limits_, cost_.main) / (2 * cost_.layer_weights));
  }

  double StepSeconds(uint32_t batch, uint32_t position, uint32_t stride) {
    Step(batch, position, 1, stride, true);
    const MonoTime begin = RealClock().Now();
    for (uint32_t i = 1; i <= flags_.decode_tokens; ++i) Step(batch, position + i, 1, stride, true);
    return Seconds(RealClock().Now() - begin) / static_cast<double>(flags_.decode_tokens);
  }

  void Decode(uint32_t batch) {
    MeasureLimits();
    const auto steps = static_cast<uint32_t>(flags_.decode_tokens);
    const uint32_t stride = RoundUp(kPrompt + steps + 1) / 16;
    Step(batch, 0, kPrompt - 1, stride, false);
    const double seconds = StepSeconds(batch, kPrompt - 1, stride);
    const double kv = KvBytesPerPosition() * (kPrompt + 0.5 * steps);
    const double alone = limits_.read_bytes / (cost_.bytes + kv);
    if (batch == 1) return Add("decode", 1 / seconds, alone);
    const bool is_quantized =
        cost_.main != DType::kF32 && cost_.main != DType::kF16 && cost_.main != DType::kBF16;
    const double compute = ComputeLimit(limits_, cost_.main) / (is_quantized ? 2 : 1);
    const double weights = 2 * (cost_.layer_weights + cost_.output_weights);
    Add(Concat("batch ", batch), batch / seconds, std::min(batch * alone, compute / weights));
  }

  void Context(uint32_t context) {
    MeasureLimits();
    const double near = StepSeconds(1, kPrompt, 0), far = StepSeconds(1, context, 0);
    const double bytes = KvBytesPerPosition() * (context + 0.5 * static_cast<double>(flags_.decode_tokens));
    Add(Concat("context ", context), 1 / far, limits_.read_bytes / (cost_.bytes + bytes));
    Add(Concat("attention ", context), 1 / (far - near), limits_.read_bytes / bytes);
  }

  const Flags& flags_;
  const ModelFiles& files_;
  const ModelCost cost_;
  ThreadPool pool_;
  LimitsMeter meter_;
  std::unique_ptr<Transformer> model_;
  std::unique_ptr<KvPool> kv_;
  std::vector<BlockId> blocks_;
  std::vector<int32_t> tokens_;
  double load_seconds_ = 0;
  MachineLimits limits_;
  std::vector<MachineLimits> all_limits_;
  std::vector<double> busy_;
  std::map<std::string, Figure> figures_;
};

Status Run(const Flags& flags) {
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(flags.model));
  Bench bench(flags, files);
  RETURN_IF_ERROR(bench.Open());
  bench.WarmUp();
  for (size_t i = 0; i < flags.rounds; ++i) bench.Round();
  bench.Print();
  if (!flags.json.empty()) std::ofstream(flags.json) << bench.Report().dump() << "\n";
  return Status();
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  terrace::Flags flags;
  CLI::App app("Passes of a whole model against the limits of the machine");
  app.add_option("--model", flags.model, "a .gguf file or a model folder")->required();
  app.add_option("--threads", flags.threads, "of the compute pool")->check(CLI::Range(1, 1024));
  app.add_option("--rounds", flags.rounds, "")->check(CLI::Range(1, 1000));
  app.add_option("--prefill", flags.prefill, "prompt lengths")->delimiter(',');
  app.add_option("--decode-tokens", flags.decode_tokens, "steps of each decode")->check(CLI::Range(1, 4096));
  app.add_option("--batch", flags.batch, "sequences decoded together")->delimiter(',');
  app.add_option("--context", flags.context, "positions before a decode")->delimiter(',');
  app.add_option("--kv", flags.kv, "KV dtype");
  app.add_option("--virtual-shards", flags.virtual_shards, "parts of the products that ranks would sum");
  app.add_option("--json", flags.json, "file for all figures");
  CLI11_PARSE(app, argc, argv);
  const terrace::Status status = terrace::Run(flags);
  if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(terrace::Message(status)).c_str());
  return status.ok() ? 0 : 1;
}
