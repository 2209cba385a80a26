#include "tools/plan/parallel_cost.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "worker/parallel/communicator.h"
#include "worker/parallel/pipeline.h"

namespace terrace {
namespace {

constexpr double kF32Bytes = 4;  // of logits, and of what CPUs tell each other

bool IsAtOnce(double bytes) { return bytes <= static_cast<double>(Communicator::kAtOnceBytes); }

double Rounds(double bytes) { return IsAtOnce(bytes) ? 1 : 2; }

// Seconds of a stage with one micro-batch: of its slowest rank.
struct StageTime {
  double compute = 0, sums = 0;
  double total() const { return compute + sums; }
};

// What of a step one micro-batch has, on average.
struct MicroBatch {
  double rows = 0;            // tokens
  double positions = 0;       // that these look at, summed over them
  double read_positions = 0;  // of the KV cache: those of each sequence once
};

MicroBatch CutStep(const StepShape& step, uint32_t micro_batches) {
  const double parts = micro_batches;
  const double sequences = step.sequences, tokens = step.tokens, context = static_cast<double>(step.context);
  // A part of a prompt reads all that is before it again; one of a batch has sequences of its own.
  const double readers = std::max(sequences / parts, 1.0);
  return {.rows = sequences * tokens / parts,
          .positions = sequences * tokens * (context + (tokens + 1) / 2) / parts,
          .read_positions = readers * (context + tokens)};
}

double ProductSeconds(uint64_t bytes, uint64_t elements, double rows, const DeviceSpec& device) {
  return std::max(static_cast<double>(bytes) / device.bytes_per_second,
                  2 * static_cast<double>(elements) * rows / device.operations_per_second);
}

// Of the matrices of the layers, where each row takes experts of its own at random: those that any of them
// takes are read, and each row is multiplied by its own.
double LayerProductSeconds(const RankShare& share, const ModelConfig& config, double rows,
                           const DeviceSpec& device) {
  if (config.experts == 0) return ProductSeconds(share.layer_bytes, share.layer_elements, rows, device);
  const double taken = static_cast<double>(config.experts_per_token) / config.experts;
  const double read = 1 - std::pow(1 - taken, rows);
  const auto of = [](uint64_t all, uint64_t experts, double part) {
    return all - experts + static_cast<uint64_t>(part * static_cast<double>(experts));
  };
  return ProductSeconds(of(share.layer_bytes, share.expert_bytes, read),
                        of(share.layer_elements, share.expert_elements, taken), rows, device);
}

double ComputeSeconds(const RankShare& share, const ModelConfig& config, const DeviceSpec& device,
                      KvDType kv_dtype, const MicroBatch& part) {
  const auto kv_bytes = static_cast<double>(KvBytesPerToken(share, config, kv_dtype));
  const double scores = 4.0 * share.heads * config.head_dim * static_cast<double>(share.layers.size());
  return LayerProductSeconds(share, config, part.rows, device) +
         std::max(part.read_positions * kv_bytes / device.bytes_per_second,
                  part.positions * scores / device.operations_per_second);
}

// From the ranks of the last stage to rank 0, one after the other; its own are there.
double LogitsSeconds(const ParallelDegrees& degrees, const ModelConfig& config, const LinkCost& link,
                     double rows) {
  const double bytes = rows * config.vocab_size * kF32Bytes / degrees.tensor;
  return (degrees.pipeline > 1 ? degrees.tensor : degrees.tensor - 1) * link.MessageSeconds(bytes);
}

// [stages]
std::vector<StageTime> StageTimes(const ModelSplit& split, const ModelConfig& config,
                                  const DeviceSpec& device, KvDType kv_dtype, const MicroBatch& part) {
  const double hidden_bytes = part.rows * config.hidden_size * device.activation_bytes;
  std::vector<StageTime> stages(split.degrees.pipeline);
  for (const RankShare& share : split.ranks) {
    StageTime& stage = stages[share.stage];
    stage.compute = std::max(stage.compute, ComputeSeconds(share, config, device, kv_dtype, part));
    stage.sums = 2 * static_cast<double>(share.layers.size()) *
                 device.link.SumSeconds(hidden_bytes, split.degrees.tensor);
  }
  return stages;
}

// Of all ticks: of each the slowest stage that has a micro-batch.
StageTime TickTimes(std::span<const StageTime> stages, size_t micro_batches) {
  StageTime all;
  for (size_t tick = 0; tick + 1 < micro_batches + stages.size(); ++tick) {
    const size_t first = tick < micro_batches ? 0 : tick - micro_batches + 1;
    const size_t last = std::min(tick, stages.size() - 1);
    const auto at_work = stages.subspan(first, last - first + 1);
    const StageTime& slowest = *std::ranges::max_element(at_work, {}, &StageTime::total);
    all.compute += slowest.compute;
    all.sums += slowest.sums;
  }
  return all;
}

double OutputSeconds(const ModelSplit& split, const DeviceSpec& device, double rows) {
  double slowest = 0;
  for (const RankShare& share : split.ranks)
    slowest = std::max(slowest, ProductSeconds(share.output_bytes, share.output_elements, rows, device));
  return slowest;
}

StepEstimate EstimateWith(uint32_t micro_batches, const ModelSplit& split, const ModelConfig& config,
                          const DeviceSpec& device, KvDType kv_dtype, const StepShape& step) {
  const ParallelDegrees& degrees = split.degrees;
  const LinkCost& link = device.link;
  const MicroBatch part = CutStep(step, micro_batches);
  const double hidden_bytes = part.rows * config.hidden_size * device.activation_bytes;
  const std::vector<StageTime> stages = StageTimes(split, config, device, kv_dtype, part);
  const StageTime ticks = TickTimes(stages, micro_batches);
  double busy = 0;  // of all stages together
  size_t most_layers = 0;
  for (const StageTime& stage : stages) busy += micro_batches * stage.total();
  for (const RankShare& share : split.ranks) most_layers = std::max(most_layers, share.layers.size());
  StepEstimate out;
  out.micro_batches = micro_batches;
  out.sum_seconds = ticks.sums;
  out.sum_bytes =
      2.0 * static_cast<double>(most_layers) * micro_batches * SumSentBytes(hidden_bytes, degrees.tensor);
  if (degrees.ranks() > 1)
    out.send_seconds = link.round_seconds + LogitsSeconds(degrees, config, link, step.sequences);
  if (degrees.pipeline > 1) {
    const double passes = micro_batches + degrees.pipeline - 2.0;
    out.send_seconds += (passes + 1) * link.round_seconds + passes * link.MessageSeconds(hidden_bytes);
  }
  out.seconds =
      device.step_seconds + ticks.total() + OutputSeconds(split, device, step.sequences) + out.send_seconds;
  out.bubble = 1 - busy / (degrees.pipeline * ticks.total());
  return out;
}

}  // namespace

double SumSentBytes(double bytes, uint32_t ranks) {
  const double others = ranks - 1.0;
  return IsAtOnce(bytes) ? others * bytes : 2 * others / ranks * bytes;
}

double LinkCost::SumSeconds(double bytes, uint32_t ranks) const {
  if (ranks == 1) return 0;
  return Rounds(bytes) * round_seconds + SumSentBytes(bytes, ranks) * seconds_per_byte;
}

StatusOr<LinkCost> FitLink(std::span<const SumSample> samples, uint32_t ranks) {
  CHECK(ranks > 1, ranks, " ranks");
  if (samples.size() < 2) return InvalidArgument(samples.size(), " sums were measured, 2 are needed");
  // Of a * x + b * y = 1 with x and y the rounds and bytes over the time, by its normal equations.
  double xx = 0, xy = 0, yy = 0, x_sum = 0, y_sum = 0;
  for (const SumSample& sample : samples) {
    if (sample.bytes == 0 || !(sample.seconds > 0))
      return InvalidArgument("a sum of ", sample.bytes, " bytes in ", sample.seconds, " s");
    const auto bytes = static_cast<double>(sample.bytes);
    const double x = Rounds(bytes) / sample.seconds, y = SumSentBytes(bytes, ranks) / sample.seconds;
    xx += x * x;
    xy += x * y;
    yy += y * y;
    x_sum += x;
    y_sum += y;
  }
  const double determinant = xx * yy - xy * xy;
  LinkCost link;
  if (determinant > 1e-12 * xx * yy) {
    link.round_seconds = (x_sum * yy - y_sum * xy) / determinant;
    link.seconds_per_byte = (y_sum * xx - x_sum * xy) / determinant;
  } else {
    link.round_seconds = x_sum / xx;  // sizes that do not tell the two apart
  }
  if (link.round_seconds < 0) link = {.seconds_per_byte = y_sum / yy};
  if (link.seconds_per_byte < 0) link = {.round_seconds = x_sum / xx};
  return link;
}

StepEstimate EstimateStep(const ModelSplit& split, const ModelConfig& config, const DeviceSpec& device,
                          KvDType kv_dtype, const StepShape& step) {
  CHECK(step.sequences > 0 && step.tokens > 0, "a step of ", step.sequences, " x ", step.tokens, " tokens");
  CHECK(device.bytes_per_second > 0 && device.operations_per_second > 0, device.name, " without rates");
  const uint64_t tokens = uint64_t{step.sequences} * step.tokens;
  const uint64_t usual = MicroBatchesOf(tokens, split.degrees.pipeline);  // as the engine has it
  const uint64_t parts = std::min<uint64_t>(step.micro_batches > 0 ? step.micro_batches : usual, tokens);
  return EstimateWith(static_cast<uint32_t>(parts), split, config, device, kv_dtype, step);
}

StepCost CostOnRanks(const StepCost& alone, const ModelSplit& split, const ModelConfig& config,
                     const LinkCost& link, uint32_t max_sequences) {
  CHECK(split.degrees.pipeline == 1, split.degrees.pipeline, " stages");
  const uint32_t ranks = split.degrees.tensor;
  if (ranks == 1) return alone;
  double computed = 0, kv_heads = 0;  // elements and heads of all ranks
  for (const RankShare& share : split.ranks) {
    computed += static_cast<double>(share.layer_elements);
    kv_heads += share.kv_heads;
  }
  const double again =
      2.0 * config.layers * (kv_heads - config.kv_heads) * config.head_dim * config.hidden_size;
  return alone.Changed(computed / (computed - again), [&](uint32_t tokens) {
    const double bytes = tokens * kF32Bytes * config.hidden_size;
    return link.round_seconds + 2.0 * config.layers * link.SumSeconds(bytes, ranks) +
           LogitsSeconds(split.degrees, config, link, std::min(tokens, max_sequences));
  });
}

}  // namespace terrace
