#include "tools/plan/step_cost.h"

#include <algorithm>
#include <random>
#include <vector>

#include "base/exit_code.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

// A machine that is a roofline: step time = max(bytes / bandwidth, operations / rate) + overhead, and reads
// keys and values for each position.
struct Machine {
  double read = 2e-3;      // the weights, once a step
  double token = 1e-4;     // arithmetic of a token
  double overhead = 1e-4;  // of a step
  double decode_context = 2e-8, prefill_context = 5e-9;

  double Seconds(const StepWork& work) const {
    return std::max(read, token * work.tokens()) + overhead + decode_context * work.decode_context +
           prefill_context * work.prefill_context;
  }
  StepSample Sample(const StepWork& work) const { return {.work = work, .seconds = Seconds(work)}; }
};

StepWork Decode(uint32_t sequences, double context) {
  return {.decode_tokens = sequences, .decode_context = sequences * context};
}
StepWork Prefill(uint32_t tokens, double from) {
  return {.prefill_tokens = tokens, .prefill_context = tokens * (from + tokens / 2.0)};
}

// Powers of two up to 256 tokens, which has the corner of the roofline at 20 tokens between two of them.
std::vector<StepSample> SamplesOf(const Machine& machine) {
  std::vector<StepSample> samples;
  for (uint32_t sequences : {1, 2, 4, 8, 16}) {
    for (const double context : {16.0, 1000.0}) samples.push_back(machine.Sample(Decode(sequences, context)));
  }
  samples.push_back(machine.Sample(Prefill(20, 0)));
  for (uint32_t tokens : {32, 64, 128, 256}) {
    for (const double from : {0.0, 2000.0}) samples.push_back(machine.Sample(Prefill(tokens, from)));
  }
  samples.push_back(
      machine.Sample(Prefill(232, 256)));  // the rest of a prompt: of no other is there a short one
  return samples;
}

TEST(StepCost, IsExactOnAMachineThatIsARoofline) {
  const Machine machine;
  const auto cost = StepCost::Fit(SamplesOf(machine));
  ASSERT_TRUE(cost.ok()) << cost.status();
  EXPECT_NEAR(cost->seconds_per_decode_context(), machine.decode_context, 1e-3 * machine.decode_context);
  EXPECT_NEAR(cost->seconds_per_prefill_context(), machine.prefill_context, 1e-3 * machine.prefill_context);
  for (const StepWork& work : {Decode(1, 5000), Decode(3, 100), Decode(12, 64), Prefill(48, 0),
                               Prefill(200, 0), Prefill(256, 4000), Prefill(512, 100)}) {
    EXPECT_NEAR(cost->Seconds(work), machine.Seconds(work), 1e-3 * machine.Seconds(work))
        << work.prefill_tokens << " + " << work.decode_tokens;
  }
  EXPECT_EQ(cost->Seconds({}), 0);
}

TEST(StepCost, MoreWorkNeverTakesLess) {
  for (const uint32_t seed : {1u, 2u, 3u, 4u}) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    std::vector<StepSample> samples = SamplesOf({});
    for (StepSample& sample : samples) sample.seconds *= 0.5 + 0.001 * static_cast<double>(random() % 1000);
    const auto cost = StepCost::Fit(samples);
    ASSERT_TRUE(cost.ok());
    double last = 0;
    for (uint32_t tokens = 1; tokens < 1000; ++tokens) {
      const double seconds = cost->Seconds({.decode_tokens = tokens});
      EXPECT_GE(seconds, last) << tokens;
      last = seconds;
      EXPECT_GE(cost->Seconds(Decode(tokens, 1000)), seconds);
      EXPECT_GE(cost->Seconds(Prefill(tokens, 1000)), seconds);
    }
  }
}

TEST(StepCost, TellsOfWhatWasMeasuredOnce) {
  const StepSample one[] = {{.work = Decode(4, 0), .seconds = 0.01}};
  const auto cost = StepCost::Fit(one);
  ASSERT_TRUE(cost.ok());
  EXPECT_DOUBLE_EQ(cost->Seconds(Decode(1, 0)), 0.01);
  EXPECT_DOUBLE_EQ(cost->Seconds(Decode(8, 0)), 0.02) << "nothing says that more tokens come for nothing";
}

TEST(StepCost, AChangedCurveNeverFallsAndContextsCostTheSame) {
  const StepSample samples[] = {{.work = Decode(1, 0), .seconds = 0.01},
                                {.work = Decode(8, 0), .seconds = 0.02},
                                {.work = Decode(1, 5000), .seconds = 0.03}};
  const StepCost cost = StepCost::Fit(samples).value();
  const StepCost same = cost.Changed(1, [](uint32_t) { return 0.0; });
  EXPECT_EQ(same.curve(), cost.curve());
  const StepCost more = cost.Changed(2, [](uint32_t tokens) { return 0.001 * tokens; });
  EXPECT_DOUBLE_EQ(more.Seconds(Decode(1, 0)), 2 * cost.Seconds(Decode(1, 0)) + 0.001);
  EXPECT_DOUBLE_EQ(more.Seconds(Decode(8, 0)), 2 * cost.Seconds(Decode(8, 0)) + 0.008);
  EXPECT_DOUBLE_EQ(more.seconds_per_decode_context(), cost.seconds_per_decode_context());
  const StepCost flat = cost.Changed(1, [](uint32_t tokens) { return tokens == 1 ? 1.0 : 0; });
  EXPECT_GE(flat.Seconds(Decode(8, 0)), flat.Seconds(Decode(1, 0)));
}

TEST(StepCost, RefusesWhatIsNoMeasurement) {
  EXPECT_EQ(ExitCodeFor(StepCost::Fit({}).status()), kExitUsage);
  const StepSample far[] = {{.work = Decode(1, 5000), .seconds = 1}};
  EXPECT_FALSE(StepCost::Fit(far).ok()) << "what of it is the context's?";
  for (const StepSample& wrong : {StepSample{.seconds = 1}, StepSample{.work = Decode(1, 0), .seconds = 0}})
    EXPECT_FALSE(StepCost::Fit({&wrong, 1}).ok());
}

}  // namespace
}  // namespace terrace
