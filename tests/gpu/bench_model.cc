#include "tests/gpu/bench_model.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "worker/formats/model_files.h"

namespace terrace {
namespace {

constexpr uint32_t kBlockTokens = 16, kContext = 1024;
constexpr uint32_t kPrompts = 4;  // different ones among the sequences of a batch; the others are copies

// Of Llama 3.2 1B, which may draft for BenchConfig()'s.
ModelConfig DraftConfig() {
  ModelConfig config = BenchConfig();
  config.name = "1b";
  config.hidden_size = 2048;
  config.layers = 16;
  config.head_dim = 64;
  config.ffn_size = 8192;
  return config;
}

std::vector<int32_t> RandomTokens(size_t count, uint32_t seed) {
  std::minstd_rand random(seed);
  std::vector<int32_t> out(count);
  for (int32_t& token : out) token = static_cast<int32_t>(random() % BenchConfig().vocab_size);
  return out;
}

// What a token multiplies with, but for the head.
uint64_t LayerParameters(const ModelConfig& c) {
  const uint64_t q = uint64_t{c.heads} * c.head_dim, kv = uint64_t{c.kv_heads} * c.head_dim;
  return c.layers * uint64_t{c.hidden_size} * (2 * q + 2 * kv + uint64_t{3} * c.ffn_size);
}

// What a step reads of the weights.
double WeightBytes(const CudaWeights& weights, const ModelConfig& c) {
  uint64_t bytes = BytesOf(weights.head) + sizeof(float) * c.hidden_size * (2 * c.layers + 1);
  for (const CudaLayer& layer : weights.layers) {
    for (const GpuMatrix* m : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) bytes += BytesOf(*m);
  }
  return static_cast<double>(bytes);
}

double MatmulRate(const GpuLimits& limits, GpuFormat format) {  // FP8 has twice the rate of bf16
  return limits.matmul * (format == GpuFormat::kE4M3 ? 2 : 1);
}

// Sequences that grow by a token with every step, chosen greedily.
class Sequences {
 public:
  // Prompts of kContext tokens are in the KV pool when this returns, every sequence's in blocks of its own.
  static StatusOr<Sequences> Make(CudaTransformer& model, uint32_t count, uint32_t most_steps) {
    Sequences out(model);
    const auto blocks = static_cast<uint32_t>(BlocksFor(kContext + most_steps, kBlockTokens));
    for (uint32_t i = 0; i < count; ++i) {
      out.blocks_.emplace_back(blocks);
      std::iota(out.blocks_[i].begin(), out.blocks_[i].end(), static_cast<BlockId>(i * blocks));
    }
    for (uint32_t i = 0; i < std::min(count, kPrompts); ++i) {
      const std::vector<int32_t> prompt = RandomTokens(kContext, i + 1);
      RETURN_IF_ERROR(model.Forward({.sequences = {{.tokens = prompt, .blocks = out.blocks_[i]}}}));
      RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(model.stream()));  // before the next step is described
    }
    for (uint32_t i = kPrompts; i < count; ++i) {
      for (uint32_t b = 0; b < BlocksFor(kContext, kBlockTokens); ++b) {
        RETURN_IF_ERROR(model.CopyRows(out.blocks_[i % kPrompts][b], out.blocks_[i][b], kBlockTokens));
      }
    }
    RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(model.stream()));
    return out;
  }

  // Behind the prompts again, with `count` of the sequences.
  void Restart(uint32_t count) {
    position_ = kContext;
    tokens_ = RandomTokens(count, 99);
    rows_.assign(count, GpuSampleRow{});
  }

  // One step of all, from the description of the batch to the tokens on the host.
  Status Step() {
    ASSIGN_OR_RETURN(const std::span<const GpuSampleResult> results, Run(tokens_, 1));
    for (size_t i = 0; i < tokens_.size(); ++i) tokens_[i] = results[i].token;
    ++position_;
    return {};
  }

  // A step that verifies so many drafted tokens of each, of which none counts: the sequences stay as they
  // are.
  Status Verify(uint32_t drafted) {
    const size_t count = tokens_.size() * (1 + drafted);
    rows_.resize(count);
    return Run(RandomTokens(count, 98), 1 + drafted).status();
  }

  uint32_t position() const { return position_; }

 private:
  explicit Sequences(CudaTransformer& model) : model_(model) {}

  // `tokens` are [sequences, each], behind what is there; a logit of each is wanted.
  StatusOr<std::span<const GpuSampleResult>> Run(std::span<const int32_t> tokens, uint32_t each) {
    Batch batch;
    for (size_t i = 0; i < tokens_.size(); ++i) {
      batch.sequences.push_back({.tokens = tokens.subspan(i * each, each),
                                 .first_position = position_,
                                 .blocks = blocks_[i],
                                 .logits = each});
    }
    const CudaTransformer::Choice choice = {.rows = rows_, .adjustments = {}};
    RETURN_IF_ERROR(model_.Forward(batch, &choice));
    ASSIGN_OR_RETURN(const std::span<const GpuSampleResult> results, model_.Results());
    for (size_t i = 0; i < results.size(); ++i) {
      if (results[i].token < 0) {
        return WithReason(Internal("row ", i, ", position ", position_, ": the logits are not finite"),
                          "not_finite");
      }
    }
    return results;
  }

  CudaTransformer& model_;
  std::vector<BlockTable> blocks_;
  std::vector<int32_t> tokens_;
  std::vector<GpuSampleRow> rows_;  // greedy
  uint32_t position_ = 0;
};

// Blocks for `tokens` positions and for nothing else.
StatusOr<std::unique_ptr<CudaTransformer>> MakeModel(const CudaWeights& weights, uint64_t tokens,
                                                     uint32_t sequences, bool is_invariant,
                                                     uint32_t host_blocks = 0,
                                                     const ModelConfig& config = BenchConfig()) {
  const KvShape shape = {.layers = config.layers,
                         .kv_heads = config.kv_heads,
                         .head_dim = config.head_dim,
                         .block_tokens = kBlockTokens,
                         .blocks = static_cast<uint32_t>(BlocksFor(tokens, kBlockTokens)),
                         .dtype = KvDType::kBF16,
                         .host_blocks = host_blocks};
  return CudaTransformer::Create(
      config, weights, shape, {.max_sequences = sequences, .max_step_tokens = 8192, .context_length = 8192},
      is_invariant);
}

struct DecodeTiming {
  Timing wall, device;
  double position = 0;  // mean, of the steps of `wall`
};

// Steps after some that find algorithms, capture the graph and warm up.
StatusOr<DecodeTiming> TimeDecode(CudaTransformer& model, Sequences& sequences, uint32_t count,
                                  uint32_t steps) {
  constexpr uint32_t kWarmSteps = 8;
  sequences.Restart(count);
  for (uint32_t i = 0; i < kWarmSteps; ++i) RETURN_IF_ERROR(sequences.Step());
  DecodeTiming out;
  std::vector<double> wall, device;
  out.position = sequences.position() + (steps - 1) / 2.0;
  MonoTime begin = RealClock().Now();
  for (uint32_t i = 0; i < steps; ++i) {
    RETURN_IF_ERROR(sequences.Step());
    const MonoTime now = RealClock().Now();
    wall.push_back(Seconds(now - begin));
    begin = now;
  }
  for (uint32_t i = 0; i < steps / 2; ++i) {
    RETURN_IF_ERROR(sequences.Step());
    ASSIGN_OR_RETURN(const double seconds, model.LastStepSeconds());
    device.push_back(seconds);
  }
  out.wall = TimingOf(std::move(wall));
  out.device = TimingOf(std::move(device));
  return out;
}

// Of the shape at `batch` sequences. What the best peers reach is in docs/benchmarks.md.
BenchGoal DecodeGoal(GpuFormat format, uint32_t batch) {
  if (batch == 1) {
    return BenchGoal::Fraction(format == GpuFormat::kBF16 ? 0.90 : format == GpuFormat::kE4M3 ? 0.85 : 0.75);
  }
  return BenchGoal::Fraction(batch <= 8 ? 0.88 : batch <= 32 ? 0.85 : batch <= 64 ? 0.80 : 0.70);
}

void ReportDecode(BenchContext& bench, const CudaWeights& weights, GpuFormat format, uint32_t batch,
                  const DecodeTiming& timing) {
  const ModelConfig c = BenchConfig();
  const double positions = batch * (timing.position + 1);
  const double kv_bytes = positions * 2.0 * c.layers * c.kv_heads * c.head_dim * sizeof(uint16_t);
  const double flops =
      2.0 * batch * (static_cast<double>(LayerParameters(c)) + double{1} * c.vocab_size * c.hidden_size) +
      4.0 * positions * c.layers * c.heads * c.head_dim;
  const double by_bytes = (WeightBytes(weights, c) + kv_bytes) / bench.limits.copy;
  const double by_flops = flops / MatmulRate(bench.limits, format);
  const double limit = std::max(by_bytes, by_flops);
  const std::string name = Concat("decode ", NameOf(format), ", batch ", batch);
  const char* const of = by_bytes >= by_flops ? "copy" : "matmul";
  bench.report.Add({.name = name,
                    .value = timing.wall.seconds * 1e3,
                    .unit = "ms",
                    .spread = timing.wall.spread,
                    .fraction = limit / timing.wall.seconds,
                    .limit = of,
                    .goal = DecodeGoal(format, batch)});
  bench.report.Add({.name = name + ", of it on the device",
                    .value = timing.device.seconds * 1e3,
                    .unit = "ms",
                    .spread = timing.device.spread,
                    .fraction = limit / timing.device.seconds,
                    .limit = of});
  bench.report.Add({.name = name + ", host gap",
                    .value = 100 * (1 - timing.device.seconds / timing.wall.seconds),
                    .unit = "%",
                    .goal = BenchGoal::AtMost(batch < 32 ? 2 : 1)});
  bench.report.Add({.name = name + ", rate", .value = batch / timing.wall.seconds, .unit = "tok/s"});
}

Status DecodeFormat(BenchContext& bench, GpuFormat format) {
  const std::vector<uint32_t> batches =
      bench.is_quick ? std::vector<uint32_t>{1, 8, 64} : std::vector<uint32_t>{1, 8, 32, 64, 256};
  const uint32_t steps = bench.is_quick ? 30 : 40;
  const uint32_t most_steps = 8 + steps + steps / 2, most = batches.back();
  ASSIGN_OR_RETURN(const CudaWeights* weights, bench.weights.Of(format));
  const uint64_t per_sequence = BlocksFor(kContext + most_steps, kBlockTokens) * kBlockTokens;
  ASSIGN_OR_RETURN(const auto model, MakeModel(*weights, most * per_sequence, most, false));
  ASSIGN_OR_RETURN(Sequences sequences, Sequences::Make(*model, most, most_steps));
  for (const uint32_t batch : batches) {
    const std::string name = Concat("decode ", NameOf(format), ", batch ", batch);
    if (!bench.report.HasTime(name)) continue;
    const auto timing = TimeDecode(*model, sequences, batch, steps);
    if (!timing.ok()) {
      RETURN_IF_ERROR(bench.report.SkipOr(name, timing.status()));
      continue;
    }
    ReportDecode(bench, *weights, format, batch, *timing);
  }
  return {};
}

// Seconds of a step that verifies so many drafted tokens of each sequence.
StatusOr<Timing> TimeVerify(Sequences& sequences, uint32_t count, uint32_t drafted, uint32_t steps) {
  constexpr uint32_t kWarmSteps = 4;
  sequences.Restart(count);
  for (uint32_t i = 0; i < kWarmSteps; ++i) RETURN_IF_ERROR(sequences.Verify(drafted));
  std::vector<double> seconds;
  MonoTime begin = RealClock().Now();
  for (uint32_t i = 0; i < steps; ++i) {
    RETURN_IF_ERROR(sequences.Verify(drafted));
    const MonoTime now = RealClock().Now();
    seconds.push_back(Seconds(now - begin));
    begin = now;
  }
  return TimingOf(std::move(seconds));
}

// The chance with which each drafted token has to be right, if those before it were, for a step that drafts
// and verifies `drafted` of them to give as many tokens a second as plain ones, of which it takes `cost`:
// 1 + a + ... + a^drafted = cost. Above 1: it never does.
double BreakEvenAcceptance(uint32_t drafted, double cost) {
  const auto tokens = [&](double acceptance) {
    double sum = 1, worth = 1;
    for (uint32_t i = 0; i < drafted; ++i) sum += worth *= acceptance;
    return sum;
  };
  double low = 0, high = 2;
  for (int i = 0; i < 50; ++i) {
    const double middle = (low + high) / 2;
    (tokens(middle) < cost ? low : high) = middle;
  }
  return high;
}

constexpr uint32_t kDraftBatches[] = {1, 8}, kDraftLengths[] = {1, 3, 5, 7};

// Steps of the model that drafts, one for each of kDraftBatches.
StatusOr<std::vector<Timing>> TimeDraftSteps(BenchContext& bench, uint32_t steps) {
  const ModelConfig config = DraftConfig();
  ASSIGN_OR_RETURN(const CudaWeights weights, RandomCudaWeights(config, GpuFormat::kBF16));
  RETURN_IF_CUDA_ERROR(cudaDeviceSynchronize());
  constexpr uint32_t kMost = std::end(kDraftBatches)[-1];
  const uint32_t most_steps = 8 + steps + steps / 2;
  const uint64_t per_sequence = BlocksFor(kContext + most_steps, kBlockTokens) * kBlockTokens;
  ASSIGN_OR_RETURN(const auto model, MakeModel(weights, kMost * per_sequence, kMost, false, 0, config));
  ASSIGN_OR_RETURN(Sequences sequences, Sequences::Make(*model, kMost, most_steps));
  std::vector<Timing> out;
  for (const uint32_t batch : kDraftBatches) {
    ASSIGN_OR_RETURN(const DecodeTiming timing, TimeDecode(*model, sequences, batch, steps));
    out.push_back(timing.wall);
    const std::string name = Concat("draft step of 1b bf16, batch ", batch);
    bench.report.Add({.name = name,
                      .value = timing.wall.seconds * 1e3,
                      .unit = "ms",
                      .spread = timing.wall.spread,
                      .fraction = WeightBytes(weights, config) / bench.limits.copy / timing.wall.seconds,
                      .limit = "copy, of weights"});
    bench.report.Add({.name = name + ", host gap",
                      .value = 100 * (1 - timing.device.seconds / timing.wall.seconds),
                      .unit = "%"});
  }
  return out;
}

Status VerifyFormat(BenchContext& bench, GpuFormat format, std::span<const Timing> draft_steps,
                    uint32_t steps) {
  constexpr uint32_t kMost = std::end(kDraftBatches)[-1], kLongest = std::end(kDraftLengths)[-1];
  ASSIGN_OR_RETURN(const CudaWeights* weights, bench.weights.Of(format));
  const uint64_t per_sequence = BlocksFor(kContext + 1 + kLongest, kBlockTokens) * kBlockTokens;
  ASSIGN_OR_RETURN(const auto model, MakeModel(*weights, kMost * per_sequence, kMost, false));
  ASSIGN_OR_RETURN(Sequences sequences, Sequences::Make(*model, kMost, 1 + kLongest));
  for (size_t i = 0; i < std::size(kDraftBatches); ++i) {
    const uint32_t batch = kDraftBatches[i];
    const std::string name = Concat("verify ", NameOf(format), ", batch ", batch);
    if (!bench.report.HasTime(name)) continue;
    ASSIGN_OR_RETURN(const Timing plain, TimeVerify(sequences, batch, 0, steps));
    bench.report.Add(
        {.name = name + ", plain", .value = plain.seconds * 1e3, .unit = "ms", .spread = plain.spread});
    for (const uint32_t drafted : kDraftLengths) {
      const std::string of = Concat(name, ", 1+", drafted, " tokens");
      ASSIGN_OR_RETURN(const Timing timing, TimeVerify(sequences, batch, drafted, steps));
      bench.report.Add({.name = of, .value = timing.seconds * 1e3, .unit = "ms", .spread = timing.spread});
      bench.report.Add(
          {.name = of + ", times a plain step", .value = timing.seconds / plain.seconds, .unit = ""});
      const double cost = (timing.seconds + drafted * draft_steps[i].seconds) / plain.seconds;
      bench.report.Add(
          {.name = of + ", break-even acceptance", .value = BreakEvenAcceptance(drafted, cost), .unit = ""});
    }
  }
  return {};
}

StatusOr<Timing> TimePrefill(CudaTransformer& model, uint32_t tokens, int rounds) {
  BlockTable blocks(BlocksFor(tokens, kBlockTokens));
  std::iota(blocks.begin(), blocks.end(), 0);
  const std::vector<int32_t> prompt = RandomTokens(tokens, 7);
  const std::vector<GpuSampleRow> rows(1);
  const CudaTransformer::Choice choice = {.rows = rows, .adjustments = {}};
  std::vector<double> seconds;
  for (int round = -3; round < rounds; ++round) {  // the second times algorithms, the third warms up
    const MonoTime begin = RealClock().Now();
    RETURN_IF_ERROR(
        model.Forward({.sequences = {{.tokens = prompt, .blocks = blocks, .logits = 1}}}, &choice));
    ASSIGN_OR_RETURN(const std::span<const GpuSampleResult> results, model.Results());
    if (round >= 0) seconds.push_back(Seconds(RealClock().Now() - begin));
    if (results[0].token < 0) return WithReason(Internal("prefill: the logits are not finite"), "not_finite");
  }
  return TimingOf(std::move(seconds));
}

double PrefillFlops(uint32_t tokens) {
  const ModelConfig c = BenchConfig();
  return 2.0 * tokens * static_cast<double>(LayerParameters(c)) + 2.0 * c.vocab_size * c.hidden_size +
         4.0 * c.layers * c.heads * c.head_dim * (tokens * (tokens + 1.0) / 2);
}

BenchGoal PrefillGoal(GpuFormat format) {
  switch (format) {
    case GpuFormat::kBF16:
    case GpuFormat::kW4:
      return BenchGoal::Fraction(0.80);
    case GpuFormat::kE4M3:
      return BenchGoal::Fraction(0.65);
    case GpuFormat::kW8:
    case GpuFormat::kSparse:
      return {};  // none was set
  }
  return {};
}

Status PrefillFormat(BenchContext& bench, GpuFormat format) {
  ASSIGN_OR_RETURN(const CudaWeights* weights, bench.weights.Of(format));
  ASSIGN_OR_RETURN(const auto model, MakeModel(*weights, 8192, 8, false));
  for (const uint32_t tokens : {2048u, 8192u}) {
    const std::string name = Concat("prefill ", NameOf(format), ", ", tokens, " tokens");
    if (!bench.report.HasTime(name)) continue;
    const auto timing = TimePrefill(*model, tokens, bench.is_quick ? 3 : 7);
    if (!timing.ok()) {
      RETURN_IF_ERROR(bench.report.SkipOr(name, timing.status()));
      continue;
    }
    bench.report.Add({.name = name,
                      .value = tokens / timing->seconds,
                      .unit = "tok/s",
                      .spread = timing->spread,
                      .fraction = PrefillFlops(tokens) / timing->seconds / MatmulRate(bench.limits, format),
                      .limit = format == GpuFormat::kE4M3 ? "2 x matmul" : "matmul",
                      .goal = PrefillGoal(format)});
    bench.report.Add(
        {.name = name + ", time", .value = timing->seconds * 1e3, .unit = "ms", .spread = timing->spread});
  }
  return {};
}

Status Moves(BenchContext& bench) {
  constexpr uint32_t kBlocks = 128;
  ASSIGN_OR_RETURN(const CudaWeights* weights, bench.weights.Of(GpuFormat::kBF16));
  ASSIGN_OR_RETURN(const auto model, MakeModel(*weights, 2 * kBlocks * kBlockTokens, 8, false, kBlocks));
  BlockTable blocks(kBlocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  const std::vector<int32_t> prompt = RandomTokens(kBlocks * kBlockTokens, 5);
  RETURN_IF_ERROR(model->Forward({.sequences = {{.tokens = prompt, .blocks = blocks}}}));
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(model->stream()));
  const ModelConfig c = BenchConfig();
  const double bytes = 2.0 * c.layers * c.kv_heads * c.head_dim * sizeof(uint16_t) * kBlocks * kBlockTokens;
  for (const bool to_host : {true, false}) {
    std::vector<double> seconds;
    for (int round = -1; round < bench.rounds; ++round) {
      const MonoTime begin = RealClock().Now();
      for (uint32_t i = 0; i < kBlocks; ++i) {
        const auto block = static_cast<BlockId>(i);
        // Back to other blocks, the last first.
        RETURN_IF_ERROR(to_host ? model->CopyToHost(block, i)
                                : model->CopyFromHost(i, static_cast<BlockId>(2 * kBlocks - 1) - block));
      }
      RETURN_IF_ERROR(model->WaitForCopies());
      if (round >= 0) seconds.push_back(Seconds(RealClock().Now() - begin));
    }
    const Timing timing = TimingOf(std::move(seconds));
    bench.report.Add(
        {.name = Concat("KV blocks of 2 MiB, ", to_host ? "to the host" : "from the host"),
         .value = bytes / timing.seconds / 1e9,
         .unit = "GB/s",
         .spread = timing.spread,
         .fraction = bytes / timing.seconds / (to_host ? bench.limits.to_host : bench.limits.to_device),
         .limit = "pinned copy",
         .goal = BenchGoal::Fraction(0.90)});
  }
  return {};
}

Status Load(BenchContext& bench, const std::string& path) {
  const MonoTime begin = RealClock().Now();
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(path));
  const double opened = Seconds(RealClock().Now() - begin);
  ThreadPool pool(std::max(1u, std::thread::hardware_concurrency()));
  ASSIGN_OR_RETURN(const CudaWeights weights,
                   LoadCudaWeights({.config = &files.config, .weights = files.weights.get(), .pool = &pool}));
  RETURN_IF_CUDA_ERROR(cudaDeviceSynchronize());
  const double loaded = Seconds(RealClock().Now() - begin) - opened;
  const auto bytes = static_cast<double>(weights.bytes);
  bench.report.Add({.name = Concat("open ", path), .value = opened * 1e3, .unit = "ms"});
  bench.report.Add({.name = Concat("load ", path),
                    .value = loaded * 1e3,
                    .unit = "ms",
                    .fraction = bytes / loaded / bench.limits.to_device,
                    .limit = "pinned copy"});
  return {};
}

}  // namespace

ModelConfig BenchConfig() {
  ModelConfig config;
  config.family = "llama";
  config.name = "8b";
  config.vocab_size = 128256;
  config.context_length = 8192;
  config.hidden_size = 4096;
  config.layers = 32;
  config.heads = 32;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.ffn_size = 14336;
  config.rope_base = 500000;
  return config;
}

std::string_view NameOf(GpuFormat format) {
  switch (format) {
    case GpuFormat::kBF16:
      return "bf16";
    case GpuFormat::kE4M3:
      return "fp8";
    case GpuFormat::kW4:
      return "int4";
    case GpuFormat::kW8:
      return "int8";
    case GpuFormat::kSparse:
      return "2:4";
  }
  return "?";
}

uint64_t BytesOf(const GpuMatrix& matrix) { return GpuCodeBytes(matrix) + GpuScaleBytes(matrix); }

StatusOr<const CudaWeights*> BenchWeights::Of(GpuFormat format) {
  if (const auto found = made_.find(format); found != made_.end()) return &found->second;
  ASSIGN_OR_RETURN(CudaWeights weights, RandomCudaWeights(BenchConfig(), format));
  RETURN_IF_CUDA_ERROR(cudaDeviceSynchronize());
  return &made_.emplace(format, std::move(weights)).first->second;
}

Status BenchDecode(BenchContext& bench) {
  for (const GpuFormat format : {GpuFormat::kBF16, GpuFormat::kE4M3, GpuFormat::kW4}) {
    const std::string name = Concat("decode ", NameOf(format));
    if (!bench.report.HasTime(name)) continue;
    RETURN_IF_ERROR(bench.report.SkipOr(name, DecodeFormat(bench, format)));
  }
  bench.weights.Drop(GpuFormat::kW4);
  return {};
}

Status BenchPrefill(BenchContext& bench) {
  for (const GpuFormat format : {GpuFormat::kBF16, GpuFormat::kE4M3, GpuFormat::kW4}) {
    const std::string name = Concat("prefill ", NameOf(format));
    if (!bench.report.HasTime(name)) continue;
    RETURN_IF_ERROR(bench.report.SkipOr(name, PrefillFormat(bench, format)));
  }
  bench.weights.Drop(GpuFormat::kW4);
  bench.weights.Drop(GpuFormat::kE4M3);
  return {};
}

Status BenchDrafts(BenchContext& bench) {
  const uint32_t steps = bench.is_quick ? 15 : 30;
  ASSIGN_OR_RETURN(const std::vector<Timing> draft_steps, TimeDraftSteps(bench, steps));
  for (const GpuFormat format : {GpuFormat::kBF16, GpuFormat::kW4}) {
    const std::string name = Concat("verify ", NameOf(format));
    if (!bench.report.HasTime(name)) continue;
    RETURN_IF_ERROR(bench.report.SkipOr(name, VerifyFormat(bench, format, draft_steps, steps)));
  }
  bench.weights.Drop(GpuFormat::kW4);
  return {};
}

Status BenchInvariant(BenchContext& bench) {
  constexpr uint32_t kSequences = 8, kPrompt = 2048, kSteps = 40;
  ASSIGN_OR_RETURN(const CudaWeights* weights, bench.weights.Of(GpuFormat::kBF16));
  DecodeTiming decode[2];
  Timing prefill[2];
  for (const bool is_invariant : {false, true}) {
    ASSIGN_OR_RETURN(const auto model,
                     MakeModel(*weights, kSequences * (kContext + 128), kSequences, is_invariant));
    {
      ASSIGN_OR_RETURN(Sequences sequences, Sequences::Make(*model, kSequences, 8 + kSteps + kSteps / 2));
      ASSIGN_OR_RETURN(decode[is_invariant], TimeDecode(*model, sequences, kSequences, kSteps));
    }
    ASSIGN_OR_RETURN(prefill[is_invariant], TimePrefill(*model, kPrompt, 3));
  }
  const auto add = [&](const std::string& name, const Timing& free, const Timing& invariant) {
    bench.report.Add(
        {.name = name, .value = invariant.seconds * 1e3, .unit = "ms", .spread = invariant.spread});
    bench.report.Add({.name = name + ", times the free mode's",
                      .value = invariant.seconds / free.seconds,
                      .unit = "",
                      .goal = BenchGoal::AtMost(1.1)});
  };
  add("invariant decode bf16, batch 8", decode[0].wall, decode[1].wall);
  add("invariant prefill bf16, 2048 tokens", prefill[0], prefill[1]);
  return {};
}

Status BenchMemory(BenchContext& bench, const std::string& model) {
  RETURN_IF_ERROR(bench.report.SkipOr("KV blocks", Moves(bench)));
  if (model.empty()) return {};
  return bench.report.SkipOr("load", Load(bench, model));
}

}  // namespace terrace
