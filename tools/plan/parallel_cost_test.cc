#include "tools/plan/parallel_cost.h"

#include <algorithm>
#include <vector>

#include "base/exit_code.h"
#include "gtest/gtest.h"
#include "worker/parallel/communicator.h"

namespace terrace {
namespace {

ModelConfig Config() {
  ModelConfig config;
  config.family = "llama";
  config.vocab_size = 32'000;
  config.context_length = 8192;
  config.hidden_size = 2048;
  config.layers = 16;
  config.heads = 16;
  config.kv_heads = 4;
  config.head_dim = 128;
  config.ffn_size = 8192;
  return config;
}

const ModelShape& Shape() {
  static const ModelShape shape = ShapeOf(Config(), DType::kBF16).value();
  return shape;
}

DeviceSpec Device() {
  return {.name = "d",
          .memory_bytes = 80'000'000'000,
          .bytes_per_second = 2e12,
          .operations_per_second = 5e14,
          .link = {.round_seconds = 1e-5, .seconds_per_byte = 1e-11}};
}

ModelSplit Split(const ParallelDegrees& degrees) { return SplitModel(Shape(), degrees).value(); }

StepEstimate Estimate(const ParallelDegrees& degrees, const DeviceSpec& device, const StepShape& step) {
  return EstimateStep(Split(degrees), Shape().config, device, KvDType::kBF16, step);
}

const ParallelDegrees kAllDegrees[] = {{1, 1}, {2, 1}, {4, 1}, {1, 2}, {1, 4}, {2, 2}, {4, 4}, {8, 1}};
const StepShape kAllSteps[] = {{.sequences = 1, .context = 100},
                               {.sequences = 64, .context = 2000},
                               {.sequences = 7, .context = 1},
                               {.tokens = 2048},
                               {.tokens = 33, .context = 500}};

TEST(LinkCost, ASumIsWhatTheCommunicatorSends) {
  const LinkCost link{.round_seconds = 1, .seconds_per_byte = 1};
  EXPECT_EQ(link.SumSeconds(1000, 1), 0);
  EXPECT_EQ(SumSentBytes(1000, 1), 0);
  EXPECT_EQ(link.SumSeconds(1000, 4), 1 + 3 * 1000) << "all values to each other rank at once";
  const double large = 2.0 * Communicator::kAtOnceBytes;
  EXPECT_EQ(link.SumSeconds(large, 4), 2 + 2 * 3 * large / 4) << "two rounds of shares";
}

TEST(FitLink, FindsWhatTheSamplesWereMadeOf) {
  for (const uint32_t ranks : {2u, 4u, 8u}) {
    const LinkCost link{.round_seconds = 3e-5, .seconds_per_byte = 4e-10};
    std::vector<SumSample> samples;
    for (const size_t bytes : SumProbeOptions().bytes)
      samples.push_back({.bytes = bytes, .seconds = link.SumSeconds(static_cast<double>(bytes), ranks)});
    const LinkCost fitted = FitLink(samples, ranks).value();
    EXPECT_NEAR(fitted.round_seconds, link.round_seconds, 1e-6 * link.round_seconds);
    EXPECT_NEAR(fitted.seconds_per_byte, link.seconds_per_byte, 1e-6 * link.seconds_per_byte);
  }
}

TEST(FitLink, NothingIsNegativeHoweverTheSamplesLie) {
  const std::vector<SumSample> all[] = {
      {{.bytes = 4096, .seconds = 1e-3}, {.bytes = 1 << 20, .seconds = 1e-5}},
      {{.bytes = 4096, .seconds = 1e-9}, {.bytes = 1 << 20, .seconds = 1}},
      {{.bytes = 4096, .seconds = 1e-5}, {.bytes = 4096, .seconds = 1e-5}}};
  for (const std::vector<SumSample>& samples : all) {
    const LinkCost link = FitLink(samples, 2).value();
    EXPECT_GE(link.round_seconds, 0);
    EXPECT_GE(link.seconds_per_byte, 0);
    EXPECT_GT(link.round_seconds + link.seconds_per_byte, 0);
  }
}

TEST(FitLink, RefusesWhatIsNoMeasurement) {
  const SumSample good{.bytes = 4096, .seconds = 1e-4};
  const std::vector<SumSample> all[] = {
      {}, {good}, {good, {.bytes = 0, .seconds = 1}}, {good, {.bytes = 8, .seconds = 0}}};
  for (const std::vector<SumSample>& samples : all)
    EXPECT_EQ(ExitCodeFor(FitLink(samples, 2).status()), kExitUsage) << samples.size();
}

TEST(EstimateStep, OneRankTellsNobodyAnything) {
  for (const StepShape& step : kAllSteps) {
    const StepEstimate one = Estimate({}, Device(), step);
    EXPECT_EQ(one.sum_seconds, 0);
    EXPECT_EQ(one.send_seconds, 0);
    EXPECT_EQ(one.sum_bytes, 0);
    EXPECT_EQ(one.bubble, 0);
    EXPECT_EQ(one.micro_batches, 1u);
    DeviceSpec slow_link = Device();
    slow_link.link = {.round_seconds = 10, .seconds_per_byte = 10};
    EXPECT_EQ(Estimate({}, slow_link, step).seconds, one.seconds);
  }
}

// Without attention's part and the output's, which experts do not change.
TEST(EstimateStep, AStepReadsTheExpertsThatItsTokensTake) {
  ModelConfig config = Config();
  config.experts = 8;
  config.experts_per_token = 2;
  config.ffn_size = 1024;
  ModelConfig plain = config;  // with one feed-forward
  plain.experts = plain.experts_per_token = 0;
  const ModelSplit split = SplitModel(ShapeOf(config, DType::kBF16).value(), {}).value();
  const ModelSplit of_plain = SplitModel(ShapeOf(plain, DType::kBF16).value(), {}).value();
  const RankShare &share = split.ranks[0], &plain_share = of_plain.ranks[0];
  const uint64_t of_one = uint64_t{3} * config.layers * config.hidden_size * config.ffn_size;
  EXPECT_EQ(share.expert_elements, 8 * of_one);
  EXPECT_EQ(share.expert_bytes, 2 * share.expert_elements);
  EXPECT_EQ(plain_share.expert_bytes, 0u);
  const uint64_t routers = uint64_t{config.layers} * config.experts * config.hidden_size;
  EXPECT_EQ(share.layer_elements - share.expert_elements, plain_share.layer_elements - of_one + routers);

  const DeviceSpec device = Device();
  const auto seconds_beyond_plain = [&](uint32_t sequences) {
    const StepShape step{.sequences = sequences, .context = 100};
    return EstimateStep(split, config, device, KvDType::kBF16, step).seconds -
           EstimateStep(of_plain, plain, device, KvDType::kBF16, step).seconds;
  };
  // Of one token two experts, one more than without; of very many all eight.
  const double of_bytes = 2 * static_cast<double>(of_one) / device.bytes_per_second;
  const double of_routers = 2 * static_cast<double>(routers) / device.bytes_per_second;
  EXPECT_NEAR(seconds_beyond_plain(1), of_bytes + of_routers, 1e-3 * of_bytes);
  EXPECT_NEAR(seconds_beyond_plain(100), 7 * of_bytes + of_routers, 1e-3 * of_bytes);
  double before = 0;
  for (const uint32_t sequences : {1u, 2u, 4u, 8u, 16u}) {
    EXPECT_GT(seconds_beyond_plain(sequences), before) << sequences;
    before = seconds_beyond_plain(sequences);
  }
}

TEST(EstimateStep, OneTokenTakesTheWeightsAndTheKeysAndValuesOverTheBandwidth) {
  const DeviceSpec device = Device();
  const RankShare share = Split({}).ranks[0];
  const double bytes = static_cast<double>(share.layer_bytes + share.output_bytes) +
                       1001.0 * static_cast<double>(KvBytesPerToken(share, Shape().config, KvDType::kBF16));
  EXPECT_NEAR(Estimate({}, device, {.context = 1000}).seconds, bytes / device.bytes_per_second, 1e-12);
}

TEST(EstimateStep, BetterHardwareNeverTakesLonger) {
  const auto better = [](DeviceSpec device, int which) {
    if (which == 0) device.bytes_per_second *= 2;
    if (which == 1) device.operations_per_second *= 2;
    if (which == 2) device.link.round_seconds /= 2;
    if (which == 3) device.link.seconds_per_byte /= 2;
    return device;
  };
  for (const ParallelDegrees& degrees : kAllDegrees) {
    for (const StepShape& step : kAllSteps) {
      const double seconds = Estimate(degrees, Device(), step).seconds;
      for (int which = 0; which < 4; ++which)
        EXPECT_LE(Estimate(degrees, better(Device(), which), step).seconds, seconds)
            << degrees.tensor << " x " << degrees.pipeline << ", " << which;
    }
  }
}

TEST(EstimateStep, MoreWorkNeverTakesLess) {
  for (const ParallelDegrees& degrees : kAllDegrees) {
    double last = 0;
    for (const uint32_t sequences : {1u, 2u, 4u, 8u, 64u, 256u}) {
      const double seconds =
          Estimate(degrees, Device(), {.sequences = sequences, .context = 1000, .micro_batches = 1}).seconds;
      EXPECT_GE(seconds, last) << degrees.tensor << " x " << degrees.pipeline << ", " << sequences;
      EXPECT_GT(
          Estimate(degrees, Device(), {.sequences = sequences, .context = 8000, .micro_batches = 1}).seconds,
          seconds);
      last = seconds;
    }
  }
}

TEST(EstimateStep, PartsOfAStepAreNotMoreThanItAndWhatIsSentIsCounted) {
  for (const ParallelDegrees& degrees : kAllDegrees) {
    for (const StepShape& step : kAllSteps) {
      const StepEstimate out = Estimate(degrees, Device(), step);
      EXPECT_GT(out.seconds, out.sum_seconds + out.send_seconds);
      EXPECT_EQ(out.sum_bytes > 0, degrees.tensor > 1);
      EXPECT_EQ(out.sum_seconds > 0, degrees.tensor > 1);
      EXPECT_EQ(out.send_seconds > 0, degrees.ranks() > 1);
      EXPECT_GE(out.bubble, 0);
      EXPECT_LT(out.bubble, 1);
    }
  }
  // Two sums a layer, of 8 rows of 2,048 bf16: at once, to one other rank.
  EXPECT_EQ(Estimate({.tensor = 2}, Device(), {.sequences = 8}).sum_bytes, 2.0 * 16 * 8 * 2048 * 2);
}

// With links that take no time and rows enough for arithmetic alone, stages are equal but for the output.
TEST(EstimateStep, TheBubbleIsThatOfEqualStages) {
  DeviceSpec device = Device();
  device.link = {};
  device.bytes_per_second = 1e30;
  ModelConfig config = Config();
  config.vocab_size = 16;
  const ModelShape shape = ShapeOf(config, DType::kBF16).value();
  const double alone =
      EstimateStep(SplitModel(shape, {}).value(), config, device, KvDType::kBF16, {.tokens = 4096}).seconds;
  for (const uint32_t stages : {2u, 4u, 8u}) {
    const ModelSplit split = SplitModel(shape, {.pipeline = stages}).value();
    for (const uint32_t parts : {1u, 2u, 8u, 32u}) {
      const StepEstimate out =
          EstimateStep(split, config, device, KvDType::kBF16, {.tokens = 4096, .micro_batches = parts});
      EXPECT_EQ(out.micro_batches, parts);
      EXPECT_NEAR(out.bubble, (stages - 1.0) / (stages + parts - 1.0), 1e-3) << stages << ", " << parts;
      EXPECT_NEAR(out.seconds, alone * (stages + parts - 1.0) / (stages * parts), 1e-3 * alone);
    }
    const StepEstimate chosen = EstimateStep(split, config, device, KvDType::kBF16, {.tokens = 4096});
    EXPECT_GT(chosen.micro_batches, 1u);
    EXPECT_LT(chosen.seconds, alone);
  }
}

TEST(EstimateStep, NoMicroBatchIsEmptyAndFewDecodesAreNotCut) {
  EXPECT_EQ(Estimate({.pipeline = 2}, Device(), {.sequences = 3, .micro_batches = 8}).micro_batches, 3u);
  EXPECT_EQ(Estimate({.pipeline = 2}, Device(), {.micro_batches = 8}).micro_batches, 1u);
  EXPECT_EQ(Estimate({.pipeline = 4}, Device(), {.sequences = 8}).micro_batches, 1u);
  EXPECT_EQ(Estimate({.tensor = 2}, Device(), {.tokens = 4096}).micro_batches, 1u);
  // With one micro-batch stages take turns, and what they take together is what one rank takes.
  DeviceSpec device = Device();
  device.link = {};
  EXPECT_NEAR(Estimate({.pipeline = 4}, device, {.sequences = 8}).seconds,
              Estimate({}, device, {.sequences = 8}).seconds, 1e-9);
}

StepCost Measured() {
  const StepSample samples[] = {{.work = {.decode_tokens = 1}, .seconds = 0.01},
                                {.work = {.decode_tokens = 16}, .seconds = 0.012},
                                {.work = {.prefill_tokens = 256}, .seconds = 0.1},
                                {.work = {.decode_tokens = 1, .decode_context = 4000}, .seconds = 0.02}};
  return StepCost::Fit(samples).value();
}

TEST(CostOnRanks, OneRankCostsWhatWasMeasured) {
  const StepCost alone = Measured();
  const StepCost same =
      CostOnRanks(alone, Split({}), Config(), {.round_seconds = 1, .seconds_per_byte = 1}, 16);
  EXPECT_EQ(same.curve(), alone.curve());
  EXPECT_EQ(same.seconds_per_decode_context(), alone.seconds_per_decode_context());
}

TEST(CostOnRanks, TwoSumsALayerComeOnTop) {
  const StepCost alone = Measured();
  const LinkCost link{.round_seconds = 1e-4};
  const StepCost two = CostOnRanks(alone, Split({.tensor = 2}), Config(), link, 16);
  for (const uint32_t tokens : {1u, 16u, 256u}) {
    // 64 KiB are 8 rows of 2,048 f32: more take two rounds. The logits and the plan are one each.
    const double rounds = tokens <= 8 ? 1 : 2;
    const StepWork work{.decode_tokens = tokens};
    EXPECT_NEAR(two.Seconds(work) - alone.Seconds(work), (2 * 16 * rounds + 2) * 1e-4, 1e-9) << tokens;
  }
  // Four KV heads on eight ranks: keys and values are computed twice.
  const StepCost eight = CostOnRanks(alone, Split({.tensor = 8}), Config(), {}, 16);
  EXPECT_GT(eight.Seconds({.decode_tokens = 1}), alone.Seconds({.decode_tokens = 1}));
  const StepCost four = CostOnRanks(alone, Split({.tensor = 4}), Config(), {}, 16);
  EXPECT_NEAR(four.Seconds({.decode_tokens = 1}), alone.Seconds({.decode_tokens = 1}), 1e-12);
}

}  // namespace
}  // namespace terrace
