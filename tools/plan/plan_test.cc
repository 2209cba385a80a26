#include "tools/plan/plan.h"

#include <algorithm>

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;

// A machine on which a step takes `seconds`, and `per_token` more for each token.
StepCost Machine(double seconds, double per_token = 0) {
  const StepSample samples[] = {{.work = {.decode_tokens = 1}, .seconds = seconds + per_token},
                                {.work = {.prefill_tokens = 1024}, .seconds = seconds + 1024 * per_token}};
  return StepCost::Fit(samples).value();
}

PlanCandidate Candidate(const std::string& name, const StepCost& cost, uint64_t weight_bytes) {
  const PlanTier tier{
      .cost = &cost, .weight_bytes = weight_bytes, .kv_bytes_per_token = 1000, .context_length = 160};
  return {.name = name, .tiers = {tier}, .accuracy = AccuracyOf(90, 100)};
}

PlanSettings Settings(uint32_t concurrency) {
  PlanSettings settings{.usd_per_hour = 1};
  settings.traffic = {.prompt_tokens = LengthDistribution::Fixed(100),
                      .output_tokens = LengthDistribution::Fixed(50),
                      .load = ClosedLoop{concurrency},
                      .requests = 64};
  return settings;
}

std::vector<PlannedServing> Rank(std::span<const PlanCandidate> candidates, const PlanSettings& settings) {
  auto plans = RankPlans(candidates, settings);
  CHECK(plans.ok(), Message(plans.status()));
  return *std::move(plans);
}

TEST(RankPlans, TheCheapestThatKeepsAllIsFirst) {
  const StepCost slow = Machine(0.02), fast = Machine(0.01), fastest = Machine(0.005);
  std::vector<PlanCandidate> candidates = {Candidate("baseline", slow, 4'000'000),
                                           Candidate("int8", fast, 2'000'000),
                                           Candidate("int4", fastest, 1'000'000)};
  candidates[2].accuracy = AccuracyOf(50, 100);
  PlanSettings settings = Settings(8);
  std::vector<PlannedServing> plans = Rank(candidates, settings);
  ASSERT_EQ(plans.size(), 3u);
  EXPECT_EQ(plans[0].candidate, 2u) << "nothing is asked of its answers";
  EXPECT_TRUE(plans[0].keeps_all());
  EXPECT_NEAR(plans[0].usd_per_million_tokens, plans[2].usd_per_million_tokens / 4,
              1e-6 * plans[2].usd_per_million_tokens);
  EXPECT_THAT(plans[0].reasons_for, Contains(HasSubstr("price 0.25")));
  EXPECT_THAT(plans[0].reasons_against, Contains(HasSubstr("accuracy -0.400")));

  settings.constraints.min_accuracy = 0.8;
  plans = Rank(candidates, settings);
  EXPECT_EQ(plans[0].candidate, 1u);
  EXPECT_EQ(plans[2].candidate, 2u) << "what breaks a constraint is last";
  EXPECT_THAT(plans[2].broken, ElementsAre(HasSubstr("accuracy 0.500")));

  candidates[1].accuracy.reset();
  plans = Rank(candidates, settings);
  EXPECT_EQ(plans[0].candidate, 0u) << "unknown is not good enough";
  const auto unknown = std::ranges::find(plans, size_t{1}, &PlannedServing::candidate);
  EXPECT_THAT(unknown->broken, Contains(HasSubstr("to be measured")));
}

TEST(RankPlans, MemoryIsWeightsAndAPoolForTheBatchOrWhatIsLeft) {
  const StepCost cost = Machine(0.01);
  const PlanCandidate candidate = Candidate("a", cost, 1'000'000);
  PlanSettings settings = Settings(8);
  PlannedServing plan = Rank({&candidate, 1}, settings).front();
  EXPECT_EQ(plan.tiers[0].settings.kv_tokens, 16u * 160) << "150 tokens in blocks of 16, for 16 sequences";
  EXPECT_EQ(plan.most_memory(), 1'000'000u + 16 * 160 * 1000);
  settings.constraints.memory_bytes = 1'000'000 + 3 * 160 * 1000 + 5;
  const double before = plan.prediction.OutputTokensPerSecond();
  plan = Rank({&candidate, 1}, settings).front();
  EXPECT_EQ(plan.tiers[0].settings.kv_tokens, 3u * 160);
  EXPECT_TRUE(plan.keeps_all());
  EXPECT_LT(plan.prediction.OutputTokensPerSecond(), before) << "only three sequences at a time";
  settings.constraints.memory_bytes = 900'000;
  plan = Rank({&candidate, 1}, settings).front();
  EXPECT_FALSE(plan.keeps_all());
  EXPECT_THAT(plan.broken, Contains(HasSubstr("memory ")));
}

TEST(RankPlans, ASmallerKvCacheIsChosenWhereTheMemoryIsShortOfSequencesAndSaysWhatItGives) {
  const StepCost cost = Machine(0.01);
  std::vector<PlanCandidate> candidates = {Candidate("baseline", cost, 1'000'000),
                                           Candidate("kv-int8", cost, 1'000'000)};
  candidates[1].tiers[0].kv_bytes_per_token = 250;
  candidates[1].shift = DistributionShift{.positions = 1000, .mean_kl = 0.00031, .flip_rate = 0.0025};
  PlanSettings settings = Settings(8);
  std::vector<PlannedServing> plans = Rank(candidates, settings);
  for (const PlannedServing& plan : plans) EXPECT_THAT(plan.fitting_sequences, ElementsAre(16u));
  EXPECT_EQ(plans[0].candidate, 0u) << "of equals the first";
  EXPECT_THAT(plans[1].reasons_for, Contains("KV cache of a token 0.25 of baseline's"));
  EXPECT_THAT(plans[1].reasons_against,
              Contains(AllOf(HasSubstr("KL 0.000310 nats"), HasSubstr("at 0.250% of the positions"))));

  settings.constraints.memory_bytes = 1'000'000 + 3 * 160 * 1000;  // 150 tokens in blocks of 16, thrice
  plans = Rank(candidates, settings);
  EXPECT_EQ(plans[0].candidate, 1u);
  EXPECT_THAT(plans[0].fitting_sequences, ElementsAre(12u));
  EXPECT_THAT(plans[1].fitting_sequences, ElementsAre(3u));
  EXPECT_THAT(plans[0].reasons_for,
              Contains("its KV pool of 120 blocks holds 12 of the longest requests at once, baseline's 3"));
  EXPECT_FALSE(plans[0].is_memory_short) << "no more than 8 come";
  EXPECT_TRUE(plans[1].is_memory_short);
  EXPECT_THAT(
      plans[1].reasons_against,
      Contains("the memory is short: its KV pool of 30 blocks holds 3 of the longest requests at once, "
               "and 8 may come"));
}

TEST(RankPlans, TakesAsFewMachinesAsLatenciesAllow) {
  const StepCost cost = Machine(0.001, 0.001);  // a step of n sequences takes 1 + n ms
  const PlanCandidate candidate = Candidate("a", cost, 1'000'000);
  PlanSettings settings = Settings(16);
  settings.max_sequences = 16;
  EXPECT_EQ(Rank({&candidate, 1}, settings).front().machines(), 1u);
  double last = 0;
  for (const double limit : {0.4, 0.2, 0.15, 0.12}) {  // prompts of 100 tokens come between decodes
    settings.constraints.inter_token_p99_seconds = limit;
    const PlannedServing plan = Rank({&candidate, 1}, settings).front();
    EXPECT_GE(plan.machines(), last) << limit;
    last = plan.machines();
    if (plan.keeps_all()) {
      EXPECT_LE(plan.prediction.inter_token.Percentile(99), limit);
    }
  }
  settings.constraints.inter_token_p99_seconds = 0.0001;
  const PlannedServing plan = Rank({&candidate, 1}, settings).front();
  EXPECT_EQ(plan.machines(), 16u) << "the most there may be";
  EXPECT_THAT(plan.broken, ElementsAre(HasSubstr("inter-token p99")));
}

TEST(RankPlans, RatesAreSplitAmongMachines) {
  const StepCost cost = Machine(0.01);
  const PlanCandidate candidate = Candidate("a", cost, 1'000'000);
  PlanSettings settings = Settings(1);
  settings.traffic.load = OpenLoop{.rate = 90, .arrivals = ArrivalKind::kConstant};  // 16 / 0.5 s are served
  settings.traffic.requests = 2000;
  const PlannedServing plan = Rank({&candidate, 1}, settings).front();
  EXPECT_TRUE(plan.keeps_all());
  EXPECT_GE(plan.machines(), 3u);
  EXPECT_LE(plan.machines(), 4u);
  EXPECT_NEAR(plan.prediction.OutputTokensPerSecond(), 90 * 50, 90 * 5);
  EXPECT_THAT(plan.reasons_against, Contains(HasSubstr("machines")));
}

TEST(RankPlans, DraftsAreAsLongAsTheyPay) {
  const StepCost flat = Machine(0.01), linear = Machine(0.0001, 0.01), draft = Machine(0.002);
  PlanSettings settings = Settings(1);
  const auto length = [&settings](const StepCost& cost, double acceptance, const StepCost* drafter) {
    PlanCandidate candidate = Candidate("a", cost, 1'000'000);
    candidate.tiers[0].drafter = PlanDrafter{.acceptance = acceptance, .cost = drafter};
    return Rank({&candidate, 1}, settings).front().tiers[0].settings.drafts.length;
  };
  EXPECT_EQ(length(flat, 0.9, nullptr), 8u) << "nothing costs less than a draft for nothing";
  EXPECT_EQ(length(linear, 0.5, nullptr), 0u) << "each token is paid for";
  EXPECT_EQ(length(flat, 0, nullptr), 0u);
  EXPECT_LT(length(flat, 0.6, &draft), 8u);
  EXPECT_GT(length(flat, 0.6, &draft), 0u);
  PlanCandidate candidate = Candidate("a", linear, 1'000'000);
  candidate.tiers[0].drafter = PlanDrafter{.acceptance = 0.5, .weight_bytes = 500, .kv_bytes_per_token = 10};
  const PlannedServing plan = Rank({&candidate, 1}, settings).front();
  EXPECT_EQ(plan.most_memory(), 1'000'500u + plan.tiers[0].settings.kv_tokens * 1010);
  EXPECT_THAT(plan.reasons_against, Contains(HasSubstr("drafts make nothing faster")));
}

TEST(RankPlans, ACascadeTakesMachinesWhereTheyAreBusy) {
  const StepCost small = Machine(0.001), large = Machine(0.01);
  PlanCandidate cascade = Candidate("small+large", small, 1'000);
  cascade.tiers.push_back(Candidate("large", large, 9'000).tiers[0]);
  cascade.tiers[0].kept = 0.5;
  const PlanCandidate candidates[] = {Candidate("large", large, 9'000), cascade};
  PlanSettings settings = Settings(1);
  settings.traffic.load = OpenLoop{.rate = 60, .arrivals = ArrivalKind::kConstant};  // large serves 32
  settings.traffic.requests = 1000;
  const std::vector<PlannedServing> plans = Rank(candidates, settings);
  for (const PlannedServing& plan : plans) EXPECT_TRUE(plan.keeps_all()) << plan.broken.front();
  const PlannedServing& plan = plans[plans[0].candidate == 1 ? 0 : 1];
  ASSERT_EQ(plan.tiers.size(), 2u);
  EXPECT_EQ(plan.tiers[0].workers, 1u);
  EXPECT_LE(plan.tiers[1].workers, 2u) << "half of the requests";
  EXPECT_EQ(plan.memory_bytes.size(), 2u);
  EXPECT_GT(plan.memory_bytes[1], plan.memory_bytes[0]);
}

TEST(RankPlans, WhatCanNeverRunIsLastAndSaysWhy) {
  const StepCost cost = Machine(0.01);
  std::vector<PlanCandidate> candidates = {Candidate("short", cost, 1), Candidate("long", cost, 1)};
  candidates[0].tiers[0].context_length = 120;
  const std::vector<PlannedServing> plans = Rank(candidates, Settings(1));
  EXPECT_EQ(plans[0].candidate, 1u);
  EXPECT_EQ(plans[1].candidate, 0u);
  EXPECT_THAT(plans[1].broken, ElementsAre(HasSubstr("context of 120")));
  EXPECT_TRUE(Rank({}, Settings(1)).empty());
}

TEST(RankPlans, LimitsAndPricesKeepTheDigitsThatCount) {
  const StepCost cost = Machine(0.0005);
  const PlanCandidate candidate = Candidate("a", cost, 1'000);
  PlanSettings settings = Settings(1);
  settings.max_machines = 1;
  settings.constraints = {
      .memory_bytes = 1024, .inter_token_p99_seconds = 0.00004, .max_usd_per_million_tokens = 0.0004851};
  const PlannedServing plan = Rank({&candidate, 1}, settings).front();
  EXPECT_THAT(plan.broken, ElementsAre(HasSubstr("limit 0.0400 ms"), HasSubstr("limit 0.000977 MiB"),
                                       AllOf(HasSubstr(" a million tokens"), HasSubstr("limit $0.000485"))));
}

TEST(RankPlans, ATraceDecidesPoolsAndMachines) {
  const StepCost cost = Machine(0.01);
  const PlanCandidate candidate = Candidate("a", cost, 1'000'000);
  PlanSettings settings = Settings(1);
  settings.traffic.load = OpenLoop{};
  settings.traffic.trace.assign(64, {.prompt_tokens = 30, .output_tokens = 50});
  settings.constraints.first_token_p99_seconds = 0.5;
  const PlannedServing plan = Rank({&candidate, 1}, settings).front();
  EXPECT_EQ(plan.tiers[0].settings.kv_tokens, 16u * 80) << "80 tokens in blocks of 16, for 16 sequences";
  EXPECT_TRUE(plan.keeps_all());
  EXPECT_GT(plan.machines(), 1u) << "of one the last waits for three batches before it";
}

TEST(RankPlans, TellsWhatSpeaksAgainstACandidateBeforehand) {
  const StepCost cost = Machine(0.01);
  PlanCandidate candidate = Candidate("a", cost, 1'000'000);
  candidate.reasons_against = {"ranks wait"};
  EXPECT_THAT(Rank({&candidate, 1}, Settings(1)).front().reasons_against, Contains("ranks wait"));
}

TEST(TierPrice, OfAllTiersPaysForThePlansMachines) {
  PlannedServing plan;
  plan.usd_per_million_tokens = 6;
  plan.tiers = {{.workers = 1}};
  EXPECT_EQ(TierPrice(plan, 0), 6);
  plan.tiers = {{.workers = 1, .kept = 0.75}, {.workers = 2}};
  EXPECT_DOUBLE_EQ(TierPrice(plan, 0), 2) << "all is asked of a third of the machines";
  EXPECT_DOUBLE_EQ(TierPrice(plan, 1), 16) << "and a quarter of it of the others";
  EXPECT_DOUBLE_EQ(TierPrice(plan, 0) + 0.25 * TierPrice(plan, 1), plan.usd_per_million_tokens);
  plan.tiers[0].kept = 1;
  EXPECT_EQ(TierPrice(plan, 1), 6) << "nothing comes";
}

TEST(BrokenFigures, NamesEachLimitThatIsPassed) {
  LatencyHistogram first_token, inter_token;
  first_token.Record(std::chrono::milliseconds(100));
  inter_token.Record(std::chrono::milliseconds(10));
  PlanConstraints limits;
  EXPECT_TRUE(BrokenFigures(limits, first_token, inter_token, 0).empty());
  limits = {
      .first_token_p99_seconds = 0.05, .inter_token_p99_seconds = 0.05, .output_tokens_per_second = 100};
  const auto broken = BrokenFigures(limits, first_token, inter_token, 50);
  ASSERT_EQ(broken.size(), 2u);
  EXPECT_THAT(broken[0], testing::HasSubstr("first token p99"));
  EXPECT_EQ(broken[1], "50.0 output tok/s, at least 100.0 are asked for");
}

TEST(BrokenCosts, NamesMemoryAndPriceThatArePassed) {
  EXPECT_TRUE(BrokenCosts({}, uint64_t{1} << 40, 1e9).empty());
  const PlanConstraints limits = {.memory_bytes = 1 << 20, .max_usd_per_million_tokens = 2};
  EXPECT_TRUE(BrokenCosts(limits, 1 << 20, 2).empty());
  const auto broken = BrokenCosts(limits, (1 << 20) + 1, 2.5);
  ASSERT_EQ(broken.size(), 2u);
  EXPECT_THAT(broken[0], testing::HasSubstr("memory "));
  EXPECT_EQ(broken[1], "$2.50 a million tokens, limit $2.00");
}

TEST(RankPlans, EndsWhenItIsCancelled) {
  const StepCost cost = Machine(0.01);
  const PlanCandidate candidate = Candidate("a", cost, 1'000'000);
  PlanSettings settings = Settings(1);
  settings.is_cancelled = [] { return true; };
  const Status status = RankPlans({&candidate, 1}, settings).status();
  EXPECT_EQ(status.code(), StatusCode::kCancelled) << status;
}

TEST(RankPlans, AFasterMachineIsNeverRankedBehindASlowerOneOfTheSameMemory) {
  PlanSettings settings = Settings(4);
  for (const double seconds : {0.001, 0.01, 0.1}) {
    const StepCost slow = Machine(seconds), fast = Machine(seconds / 1.5);
    const PlanCandidate candidates[] = {Candidate("slow", slow, 1000), Candidate("fast", fast, 1000)};
    EXPECT_EQ(Rank(candidates, settings).front().candidate, 1u) << seconds;
  }
}

}  // namespace
}  // namespace terrace
