// Decode steps of one sequence as an engine runs them: planned by the scheduler, computed and sampled by the
// executor, committed, and told to a sink that keeps them; without what a server makes of them. What of their
// time is not between the device's events is the host's; launching the step's graph is between them.
#include <memory>
#include <string>
#include <vector>

#include "tests/gpu/bench_model.h"
#include "worker/cuda/cuda_runner.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/engine.h"

namespace terrace {
namespace {

constexpr uint32_t kBlockTokens = 16, kPrompt = 1024;
constexpr uint32_t kWarmSteps = 8;  // they find algorithms, capture the graph and warm up

struct EngineTiming {
  Timing wall, device;
};

SequenceSpec SpecOf(const SamplingParams& sampling, uint32_t tokens) {
  SequenceSpec spec;
  spec.request_id = "bench";
  for (uint32_t i = 0; i < kPrompt; ++i) spec.prompt.push_back(static_cast<int32_t>(i * 997 % 100'000));
  spec.max_tokens = tokens;
  spec.ignore_eos = true;
  spec.sampling = sampling;
  return spec;
}

// Wall time is from the end of one step to the end of the next, but for the time in which the device is asked
// for its own.
StatusOr<EngineTiming> TimeEngine(const CudaWeights& weights, const SamplingParams& sampling,
                                  uint32_t steps) {
  const ModelConfig config = BenchConfig();
  const uint32_t tokens = 1 + kWarmSteps + steps;  // the first one is the prompt's
  const KvShape shape = {.layers = config.layers,
                         .kv_heads = config.kv_heads,
                         .head_dim = config.head_dim,
                         .block_tokens = kBlockTokens,
                         .blocks = static_cast<uint32_t>(BlocksFor(kPrompt + tokens, kBlockTokens)),
                         .dtype = KvDType::kBF16};
  const DeviceLimits limits = {
      .max_sequences = 8, .max_step_tokens = kPrompt, .context_length = config.context_length};
  ASSIGN_OR_RETURN(auto transformer, CudaTransformer::Create(config, weights, shape, limits, false));
  CudaTransformer& model = *transformer;  // the executor's, which outlives the last step
  int device = 0;
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));

  std::vector<double> wall, on_device;  // the loop thread's until the engine has stopped, like the next ones
  Status failed;
  uint32_t decoded = 0;
  MonoTime last = {};
  Engine::Options options;
  options.scheduler = {.max_sequences = limits.max_sequences,
                       .max_step_tokens = limits.max_step_tokens,
                       .context_length = config.context_length,
                       .vocab_size = config.vocab_size,
                       .block_tokens = kBlockTokens,
                       .blocks = shape.blocks};
  options.on_step = [&](const StepObservation& step) {
    const double wall_seconds = Seconds(RealClock().Now() - last);
    if (step.decode_tokens > 0 && ++decoded > kWarmSteps) {
      const StatusOr<double> device_seconds = model.LastStepSeconds();
      if (!device_seconds.ok()) failed = device_seconds.status();
      wall.push_back(wall_seconds);
      on_device.push_back(device_seconds.value_or(0));
    }
    last = RealClock().Now();
  };
  Engine engine(options, std::make_unique<CudaRunner>(config, std::move(transformer), device));
  const auto sink = std::make_shared<CollectingSink>();
  RETURN_IF_ERROR(engine.Submit(SpecOf(sampling, tokens), sink));
  const Status ended = sink->Wait().result.error;
  engine.Stop();
  RETURN_IF_ERROR(engine.device_error());
  RETURN_IF_ERROR(ended);
  RETURN_IF_ERROR(failed);
  CHECK(wall.size() == steps, wall.size(), " steps of ", steps);
  return EngineTiming{.wall = TimingOf(std::move(wall)), .device = TimingOf(std::move(on_device))};
}

Status EngineRows(BenchContext& bench, GpuFormat format) {
  const struct {
    const char* name;
    SamplingParams sampling;
  } choices[] = {{"greedy", {.temperature = 0}}, {"sampled", {.temperature = 0.8f, .top_p = 0.95f}}};
  ASSIGN_OR_RETURN(const CudaWeights* weights, bench.weights.Of(format));
  for (const auto& choice : choices) {
    const std::string name = Concat("engine decode ", NameOf(format), ", batch 1, ", choice.name);
    if (!bench.report.HasTime(name)) continue;
    const auto timing = TimeEngine(*weights, choice.sampling, bench.is_quick ? 30 : 100);
    if (!timing.ok()) {
      RETURN_IF_ERROR(bench.report.SkipOr(name, timing.status()));
      continue;
    }
    bench.report.Add(
        {.name = name, .value = timing->wall.seconds * 1e3, .unit = "ms", .spread = timing->wall.spread});
    bench.report.Add({.name = name + ", of it on the device",
                      .value = timing->device.seconds * 1e3,
                      .unit = "ms",
                      .spread = timing->device.spread});
    bench.report.Add({.name = name + ", host gap",
                      .value = 100 * (1 - timing->device.seconds / timing->wall.seconds),
                      .unit = "%",
                      .goal = BenchGoal::AtMost(2)});
  }
  return {};
}

}  // namespace

Status BenchEngineHostGap(BenchContext& bench) {
  for (const GpuFormat format : {GpuFormat::kBF16, GpuFormat::kW4}) {
    const std::string name = Concat("engine decode ", NameOf(format));
    if (!bench.report.HasTime(name)) continue;
    RETURN_IF_ERROR(bench.report.SkipOr(name, EngineRows(bench, format)));
  }
  bench.weights.Drop(GpuFormat::kW4);
  return {};
}

}  // namespace terrace
