#include "tools/plan/serving_simulation.h"

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/bench/streams.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr double kStep = 0.01;  // of the machine below, whatever is in a step

StepCost Flat(double seconds = kStep) {
  const StepSample samples[] = {{.work = {.decode_tokens = 1}, .seconds = seconds},
                                {.work = {.prefill_tokens = 1024}, .seconds = seconds}};
  return StepCost::Fit(samples).value();
}

// A token takes a millisecond.
StepCost Linear() {
  const StepSample samples[] = {{.work = {.decode_tokens = 1}, .seconds = 0.001},
                                {.work = {.prefill_tokens = 1000}, .seconds = 1}};
  return StepCost::Fit(samples).value();
}

Traffic Closed(uint32_t concurrency, uint64_t requests, uint32_t prompt, uint32_t output) {
  return {.prompt_tokens = LengthDistribution::Fixed(prompt),
          .output_tokens = LengthDistribution::Fixed(output),
          .load = ClosedLoop{concurrency},
          .requests = requests};
}

const ServingSettings kSettings = {.max_sequences = 8, .max_step_tokens = 256, .kv_tokens = 1 << 20};

ServingTier Tier(const StepCost& cost, const ServingSettings& settings) {
  return {.cost = &cost, .settings = settings, .context_length = 100'000};
}

ServingPrediction Predict(std::span<const ServingTier> tiers, const Traffic& traffic) {
  auto out = SimulateServing(tiers, traffic);
  CHECK(out.ok(), Message(out.status()));
  return *std::move(out);
}

ServingPrediction Predict(const StepCost& cost, const ServingSettings& settings, const Traffic& traffic) {
  const ServingTier tier = Tier(cost, settings);
  return Predict({&tier, 1}, traffic);
}

TEST(SimulateServing, OneSequenceTakesAStepForItsPromptAndOneForEachFurtherToken) {
  const ServingPrediction out = Predict(Flat(), kSettings, Closed(1, 3, 100, 20));
  EXPECT_NEAR(out.seconds, 3 * 20 * kStep, 1e-8);
  EXPECT_EQ(out.output_tokens, 60u);
  EXPECT_EQ(out.prompt_tokens, 300u);
  EXPECT_NEAR(out.first_token.mean(), kStep, 1e-8);
  EXPECT_NEAR(out.inter_token.mean(), kStep, 1e-8);
  EXPECT_EQ(out.inter_token.count(), 57u);
  EXPECT_NEAR(out.busy_shares[0], 1, 1e-8);
  EXPECT_NEAR(out.end_to_end.mean(), 20 * kStep, 1e-8);
}

TEST(SimulateServing, LongPromptsAreReadInChunks) {
  const ServingPrediction out = Predict(Flat(), kSettings, Closed(1, 1, 600, 2));
  EXPECT_NEAR(out.first_token.mean(), 3 * kStep, 1e-8) << "256 + 256 + 88";
}

TEST(SimulateServing, APrefixThatIsCachedIsNotRead) {
  Traffic traffic = Closed(1, 2, 600, 1);
  traffic.shared_prefix_tokens = 590;
  const ServingPrediction out = Predict(Flat(), kSettings, traffic);
  EXPECT_NEAR(out.seconds, (3 + 1) * kStep, 1e-8) << "but by the first, which has to compute it";
}

TEST(SimulateServing, SequencesOfABatchShareSteps) {
  const ServingPrediction one = Predict(Flat(), kSettings, Closed(1, 32, 10, 50)),
                          eight = Predict(Flat(), kSettings, Closed(8, 32, 10, 50));
  EXPECT_NEAR(eight.OutputTokensPerSecond(), 8 * one.OutputTokensPerSecond(), 1e-6 * one.seconds);
}

TEST(SimulateServing, WhoFindsNoPlaceWaits) {
  ServingSettings settings = kSettings;
  settings.max_sequences = 1;
  const ServingPrediction out = Predict(Flat(), settings, Closed(2, 2, 10, 10));
  EXPECT_NEAR(out.first_token.max(), 11 * kStep, 1e-8);
  settings.max_sequences = 8;
  settings.kv_tokens = 32;  // two blocks, one request
  EXPECT_NEAR(Predict(Flat(), settings, Closed(2, 2, 10, 10)).first_token.max(), 11 * kStep, 1e-8);
}

TEST(SimulateServing, DraftsGiveMoreTokensAStep) {
  ServingSettings settings = kSettings;
  settings.drafts = {.acceptance = 1, .length = 3};
  EXPECT_EQ(settings.drafts.TokensPerStep(), 4);
  EXPECT_NEAR(Predict(Flat(), settings, Closed(1, 1, 10, 41)).seconds, 11 * kStep, 1e-8);
  settings.drafts.acceptance = 0.5;
  EXPECT_EQ(settings.drafts.TokensPerStep(), 1.875);
  EXPECT_NEAR(Predict(Flat(), settings, Closed(1, 1, 10, 1 + 1875)).seconds, 1001 * kStep, kStep);
  settings.drafts = {.acceptance = 0, .length = 3};
  EXPECT_NEAR(Predict(Flat(), settings, Closed(1, 1, 10, 41)).seconds, 41 * kStep, 1e-8);
  EXPECT_GT(Predict(Linear(), settings, Closed(1, 1, 10, 41)).seconds,
            Predict(Linear(), kSettings, Closed(1, 1, 10, 41)).seconds)
      << "what is not accepted was computed all the same";
}

TEST(SimulateServing, AnOpenLoopIsServedAsItComesUntilItIsTooMuch) {
  Traffic traffic = Closed(1, 400, 10, 10);
  OpenLoop open{.rate = 1, .arrivals = ArrivalKind::kConstant};
  traffic.load = open;
  const ServingPrediction idle = Predict(Flat(), kSettings, traffic);
  EXPECT_FALSE(idle.is_overloaded);
  EXPECT_NEAR(idle.first_token.max(), kStep, 1e-8);
  EXPECT_NEAR(idle.busy_shares[0], 0.1, 0.01);
  for (const double rate : {10.0, 40.0, 60.0, 100.0, 200.0}) {  // 80 requests a second can be served
    open.rate = rate;
    traffic.load = open;
    const ServingPrediction out = Predict(Flat(), kSettings, traffic);
    EXPECT_EQ(out.is_overloaded, rate > 80) << rate;
    if (rate < 80) {
      EXPECT_LT(out.first_token.max(), 3 * kStep) << rate;
    } else {
      EXPECT_NEAR(out.first_token.max(), 400 / 80.0 - 400 / rate, 0.1) << "the last one waits for all before";
    }
  }
}

TEST(SimulateServing, SlowerStepsNeverServeMore) {
  for (const uint64_t seed : {1, 2, 3}) {
    SCOPED_TRACE(seed);
    Traffic traffic = Closed(4, 50, 10, 10);
    traffic.seed = seed;
    traffic.prompt_tokens = LengthDistribution::Parse("uniform:10-300").value();
    traffic.output_tokens = LengthDistribution::Parse("uniform:1-80").value();
    double last = 1e9;
    for (const double seconds : {0.001, 0.002, 0.01, 0.5}) {
      const double rate = Predict(Flat(seconds), kSettings, traffic).OutputTokensPerSecond();
      EXPECT_LT(rate, last);
      last = rate;
    }
  }
}

TEST(SimulateServing, WorkersShareWhatComes) {
  const StepCost cost = Flat();
  ServingTier tier = Tier(cost, kSettings);
  tier.settings.max_sequences = 1;
  const double one = Predict({&tier, 1}, Closed(4, 40, 10, 10)).seconds;
  tier.workers = 4;
  const ServingPrediction four = Predict({&tier, 1}, Closed(4, 40, 10, 10));
  EXPECT_NEAR(four.seconds, one / 4, 1e-8);
  EXPECT_NEAR(four.busy_shares[0], 1, 1e-8);
  EXPECT_NEAR(four.sequences[0], 1, 1e-8);
}

TEST(SimulateServing, WhatArrivesGoesToAWorkerThatIsIdleThen) {
  const StepCost cost = Flat(), slow = Flat(0.5);
  ServingTier tier = Tier(cost, kSettings);
  tier.settings.max_sequences = 1;
  tier.workers = 2;
  Traffic traffic = Closed(1, 3, 10, 1);
  traffic.load = OpenLoop{.rate = 1 / (20 * kStep), .arrivals = ArrivalKind::kConstant};
  traffic.output_tokens = LengthDistribution::Parse("uniform:1-100").value();
  const auto output = [&](uint64_t request) {
    return traffic.output_tokens.Draw(traffic.seed, request, kOutputLengthStream);
  };
  while (output(0) < 80 || output(1) > 10 || output(2) > 10) ++traffic.seed;
  EXPECT_NEAR(Predict({&tier, 1}, traffic).first_token.max(), kStep, 1e-8)
      << "the third finds the first worker with the first request, and the second idle";

  tier.cost = &slow;
  traffic = Closed(1, 2, 10, 1);
  traffic.load = OpenLoop{.rate = 10, .arrivals = ArrivalKind::kConstant};
  EXPECT_NEAR(Predict({&tier, 1}, traffic).first_token.max(), 0.5, 1e-8) << "a last step is work, too";
}

TEST(SimulateServing, ACascadeHoldsBackAndAsksOn) {
  const StepCost cost = Flat();
  ServingTier tiers[] = {Tier(cost, kSettings), Tier(cost, kSettings)};
  tiers[0].kept = 1;
  ServingPrediction out = Predict(tiers, Closed(1, 3, 10, 10));
  EXPECT_NEAR(out.first_token.mean(), 10 * kStep, 1e-8) << "with the last token, when the gate has decided";
  EXPECT_NEAR(out.seconds, 30 * kStep, 1e-8);
  EXPECT_EQ(out.busy_shares[1], 0);
  tiers[0].kept = 0;
  out = Predict(tiers, Closed(1, 3, 10, 10));
  EXPECT_NEAR(out.first_token.mean(), 11 * kStep, 1e-8) << "the second tier streams";
  EXPECT_NEAR(out.end_to_end.mean(), 20 * kStep, 1e-8);
  EXPECT_EQ(out.output_tokens, 30u) << "what was not given counts nowhere";
  tiers[0].kept = 0.75;
  Traffic traffic = Closed(1, 2000, 10, 10);
  out = Predict(tiers, traffic);
  EXPECT_NEAR(out.end_to_end.mean(), (0.75 * 10 + 0.25 * 20) * kStep, 0.5 * kStep);
  EXPECT_NEAR(out.busy_shares[0] + out.busy_shares[1], 1, 1e-6) << "one request at a time";
  traffic.load = ClosedLoop{8};
  const ServingPrediction both = Predict(tiers, traffic);
  EXPECT_GT(both.OutputTokensPerSecond(), 4 * out.OutputTokensPerSecond()) << "both work at the same time";
}

TEST(SimulateServing, ATraceIsServedAsItWasRecorded) {
  Traffic traffic;
  traffic.trace = {{.arrival_seconds = 0, .prompt_tokens = 600, .output_tokens = 2},
                   {.arrival_seconds = 1, .prompt_tokens = 10, .output_tokens = 5},
                   {.arrival_seconds = 1, .prompt_tokens = 10, .output_tokens = 1}};
  EXPECT_EQ(traffic.longest(), 602u);
  const ServingPrediction out = Predict(Flat(), kSettings, traffic);
  EXPECT_EQ(out.prompt_tokens, 620u);
  EXPECT_EQ(out.output_tokens, 8u);
  EXPECT_EQ(out.first_token.count(), 3u);
  EXPECT_NEAR(out.first_token.max(), 3 * kStep, 1e-8) << "256 + 256 + 88";
  EXPECT_NEAR(out.seconds, 1 + 5 * kStep, 1e-8);
  EXPECT_FALSE(out.is_overloaded);
}

TEST(SimulateServing, ATraceOfOneMomentIsABurst) {
  Traffic traffic;
  traffic.trace.assign(32, {.prompt_tokens = 10, .output_tokens = 10});
  const ServingPrediction burst = Predict(Flat(), kSettings, traffic);
  const ServingPrediction closed = Predict(Flat(), kSettings, Closed(32, 32, 10, 10));
  EXPECT_NEAR(burst.seconds, closed.seconds, 1e-8);
  EXPECT_NEAR(burst.first_token.max(), closed.first_token.max(), 1e-8);
}

TEST(SimulateServing, APrefixOfATraceIsReadOnceByEachWorker) {
  const auto seconds = [](const char* second_prefix) {
    Traffic traffic;
    traffic.trace = {{.prompt_tokens = 600, .output_tokens = 1, .prefix = "a", .prefix_tokens = 590},
                     {.arrival_seconds = 1,
                      .prompt_tokens = 600,
                      .output_tokens = 1,
                      .prefix = second_prefix,
                      .prefix_tokens = 590},
                     {.arrival_seconds = 2, .prompt_tokens = 600, .output_tokens = 1}};
    return Predict(Flat(), kSettings, traffic).busy_shares[0] * (2 + 3 * kStep);
  };
  EXPECT_NEAR(seconds("a"), (3 + 1 + 3) * kStep, 1e-6);
  EXPECT_NEAR(seconds("b"), (3 + 3 + 3) * kStep, 1e-6);
}

TEST(SimulateServing, EndsWhenItIsCancelled) {
  const StepCost cost = Flat();
  const ServingTier tier = Tier(cost, kSettings);
  const Traffic traffic = Closed(1, 1000, 10, 10);
  uint64_t asked = 0;
  const Status status = SimulateServing({&tier, 1}, traffic, [&asked] { return ++asked == 3; }).status();
  EXPECT_EQ(status.code(), StatusCode::kCancelled) << status;
  EXPECT_EQ(asked, 3u);
  EXPECT_TRUE(SimulateServing({&tier, 1}, traffic, [] { return false; }).ok());
}

TEST(SimulateServing, NamesWhatCanNeverRun) {
  ServingSettings small = kSettings;
  small.kv_tokens = 16;
  const StepCost cost = Flat();
  const struct {
    ServingSettings settings;
    Traffic traffic;
    uint32_t context, workers;
    const char* error;
  } cases[] = {{kSettings, Closed(1, 1, 90, 20), 100, 1, "context of 100"},
               {small, Closed(1, 1, 10, 10), 100, 1, "holds 16"},
               {kSettings, Closed(1, 0, 1, 1), 100, 1, "no requests"},
               {kSettings, Closed(1, 1, 1, 1), 100, 0, "without workers"},
               {{.max_sequences = 9, .max_step_tokens = 8}, Closed(1, 1, 1, 1), 100, 1, "8 tokens for 9"}};
  for (const auto& each : cases) {
    const ServingTier tier{
        .cost = &cost, .settings = each.settings, .context_length = each.context, .workers = each.workers};
    const Status status = SimulateServing({&tier, 1}, each.traffic).status();
    EXPECT_EQ(ExitCodeFor(status), kExitUsage);
    EXPECT_THAT(Message(status), HasSubstr(each.error));
  }
}

}  // namespace
}  // namespace terrace
