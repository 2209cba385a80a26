#include "router/tier/budget_policy.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/request/param.h"
#include "router/tier/testing_plan.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

// A prompt of 10 tokens and an answer of 90 cost 100, 1,000 and 10,000 millionths.
const std::vector<std::string> kTiers = {"nano", "small", "base"};
const std::vector<TierPrice> kPrices = {{1, 1}, {10, 10}, {100, 100}};
constexpr double kNanoUsd = 100e-6, kSmallUsd = 1000e-6, kBaseUsd = 10'000e-6;

BudgetOptions Options(std::optional<double> max_usd) {
  return {.candidates = {{0, 0.5}, {1, 0.7}, {2, 0.9}}, .max_usd = max_usd};
}

std::unique_ptr<TierPolicy> Make(BudgetOptions options) {
  auto policy = MakeBudgetPolicy(std::move(options), kTiers, kPrices);
  CHECK(policy.ok(), Message(policy.status()));
  return *std::move(policy);
}

RequestPtr Ask(std::optional<double> max_usd = {}, std::optional<int64_t> max_tokens = 90,
               const std::string& prompt = "words", int64_t choices = 1,
               std::optional<double> max_seconds = {}) {
  return *Request::Make({.request_id = "r",
                         .max_usd = max_usd,
                         .max_seconds = max_seconds,
                         .input = prompt,
                         .max_tokens = max_tokens,
                         .choices = choices});
}

TEST(BudgetPolicy, TheBestTierWhosePriceFitsAnswers) {
  const struct {
    std::optional<double> max_usd;
    size_t tier;
    const char* reason;
  } cases[] = {{{}, 2, "budget"},
               {kBaseUsd, 2, "budget"},
               {kBaseUsd * 0.99, 1, "budget"},
               {kSmallUsd, 1, "budget"},
               {kNanoUsd, 0, "budget"},
               {kNanoUsd * 0.99, 0, "budget: nothing fits"},
               {0, 0, "budget: nothing fits"}};
  for (const auto& c : cases) {
    const TierPlan plan = PlanOf(*Make(Options(c.max_usd)), Ask(), ReadyTiers(kTiers));
    ASSERT_EQ(plan.steps.size(), 1u);
    EXPECT_EQ(plan.steps[0].tier, c.tier) << c.max_usd.value_or(-1);
    EXPECT_TRUE(plan.steps[0].gate.is_open());
    EXPECT_EQ(plan.reason, c.reason);
  }
}

TEST(BudgetPolicy, ThePriceIsThatOfAllAnswers) {
  const auto policy = Make(Options(kSmallUsd));
  EXPECT_EQ(PlanOf(*policy, Ask({}, 45, "words", 2), ReadyTiers(kTiers)).steps[0].tier, 1u);
  EXPECT_EQ(PlanOf(*policy, Ask({}, 90, "words", 2), ReadyTiers(kTiers)).steps[0].tier, 0u);
}

TEST(BudgetPolicy, AnAnswerWithoutALimitIsAsLongAsIsExpectedIfThereIsRoom) {
  BudgetOptions options = Options(kSmallUsd);
  options.expected_answer_tokens = 90;
  EXPECT_EQ(PlanOf(*Make(options), Ask({}, {}), ReadyTiers(kTiers)).steps[0].tier, 1u);
  options.expected_answer_tokens = 91;
  EXPECT_EQ(PlanOf(*Make(options), Ask({}, {}), ReadyTiers(kTiers)).steps[0].tier, 0u);
  EXPECT_EQ(PlanOf(*Make(options), Ask({}, {}), ReadyTiers(kTiers, /*context_length=*/100)).steps[0].tier,
            1u);
}

TEST(BudgetPolicy, OfEqualQualityTheCheapestAnswers) {
  BudgetOptions options = Options({});
  for (BudgetCandidate& each : options.candidates) each.expected_quality = 0.5;
  EXPECT_EQ(PlanOf(*Make(options), Ask(), ReadyTiers(kTiers)).steps[0].tier, 0u);
}

TEST(BudgetPolicy, ATierThatIsNotReadyIsPassedOverWhileThereIsAnother) {
  ClusterView view = ReadyTiers(kTiers);
  view.tiers[2].ready.clear();
  EXPECT_EQ(PlanOf(*Make(Options({})), Ask(), view).steps[0].tier, 1u);
  for (TierView& tier : view.tiers) tier.ready.clear();
  EXPECT_EQ(PlanOf(*Make(Options({})), Ask(), view).steps[0].tier, 2u) << "it may come back";
}

Status ErrorOf(const TierPolicy& policy, const RequestPtr& request, const ClusterView& view,
               const FixedMeter& meter = FixedMeter()) {
  return policy.Plan({*request, view, meter}).status();
}

TEST(BudgetPolicy, OfTheRequestsLimitAndThePolicysTheLowerOneHolds) {
  const struct {
    double policys, requests;
    size_t tier;
    const char* reason;
  } cases[] = {{kBaseUsd, kSmallUsd, 1, "budget"},
               {kSmallUsd, kBaseUsd, 1, "budget"},
               {kNanoUsd / 2, kBaseUsd, 0, "budget: nothing fits"},
               {kNanoUsd / 2, kNanoUsd, 0, "budget: nothing fits"}};
  for (const auto& c : cases) {
    const TierPlan plan = PlanOf(*Make(Options(c.policys)), Ask(c.requests), ReadyTiers(kTiers));
    EXPECT_EQ(plan.steps[0].tier, c.tier) << c.policys << " " << c.requests;
    EXPECT_EQ(plan.reason, c.reason);
  }
}

TEST(BudgetPolicy, TheRequestsLimitIsKeptToEvenWhereTheCheapestAnswers) {
  for (const double policys : {kBaseUsd, kNanoUsd / 4}) {
    const Status error = ErrorOf(*Make(Options(policys)), Ask(kNanoUsd / 2), ReadyTiers(kTiers));
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Reason(error), "budget_too_small");
    EXPECT_EQ(Param(error), "max_usd");
  }
}

TEST(BudgetPolicy, OfTheRequestsLimitAnAnswerIsTakenToBeAsLongAsItMayBe) {
  BudgetOptions options = Options({});
  options.expected_answer_tokens = 90;
  const ClusterView view = ReadyTiers(kTiers);  // 1000 tokens at nano: 1000 millionths
  EXPECT_EQ(PlanOf(*Make(options), Ask(kSmallUsd, {}), view).steps[0].tier, 0u);
  EXPECT_EQ(PlanOf(*Make(options), Ask(10 * kSmallUsd, {}), view).steps[0].tier, 1u);
  EXPECT_EQ(Reason(ErrorOf(*Make(options), Ask(kSmallUsd * 0.99, {}), view)), "budget_too_small");
}

TEST(BudgetPolicy, ATierThatCannotHaveThePromptIsNoCandidate) {
  FixedMeter meter;
  const ClusterView view = ReadyTiers(kTiers);
  const RequestPtr request = Ask();
  meter.errors["base"] = ParamError("context_length_exceeded", "prompt", "too long");
  EXPECT_EQ(PlanOf(*Make(Options({})), request, view, meter).steps[0].tier, 1u);
  meter.errors["nano"] = ParamError("unsupported_parameter", "tools", "no tools");
  EXPECT_EQ(PlanOf(*Make(Options(0)), request, view, meter).steps[0].tier, 1u) << "what is left";
  meter.errors["small"] = ParamError("template_error", "messages", "no");
  EXPECT_EQ(Reason(ErrorOf(*Make(Options({})), request, view, meter)), "unsupported_parameter")
      << "the first one's";
}

TEST(BudgetPolicy, WhatOnlyATierWithoutAWorkerCouldPayForWaitsForThatTier) {
  ClusterView view = ReadyTiers(kTiers);
  view.tiers[0].ready.clear();
  EXPECT_EQ(PlanOf(*Make(Options({})), Ask(kNanoUsd), view).steps[0].tier, 0u);
  EXPECT_EQ(Reason(ErrorOf(*Make(Options({})), Ask(kNanoUsd / 2), view)), "budget_too_small");
  BudgetOptions options = Options(kNanoUsd);
  EXPECT_EQ(PlanOf(*Make(options), Ask(), view).steps[0].tier, 1u) << "the cheapest that is there";
  options.refuses = true;
  EXPECT_EQ(PlanOf(*Make(options), Ask(), view).steps[0].tier, 0u);
  FixedMeter meter;
  for (const char* tier : {"small", "base"}) meter.errors[tier] = InvalidArgument("no");
  EXPECT_EQ(PlanOf(*Make(Options({})), Ask(), view, meter).steps[0].tier, 0u);
}

// An answer of 90 tokens takes 1, 10 and 100 seconds.
const std::vector<AnswerSpeed> kSpeeds = {{0.11, 0.01}, {1.1, 0.1}, {11, 1}};

StatusOr<TierPlan> PlanIn(const BudgetOptions& options, const RequestPtr& request,
                          const std::vector<AnswerSpeed>& speeds = kSpeeds) {
  const ClusterView view = ReadyTiers(kTiers);
  const FixedMeter meter;
  return Make(options)->Plan({*request, view, meter, speeds});
}

TEST(BudgetPolicy, TheBestTierWhoseTimeFitsTooAnswers) {
  const struct {
    std::optional<double> max_usd, max_seconds;
    size_t tier;
    const char* reason;
  } cases[] = {{{}, 101, 2, "budget"},     {{}, 99, 1, "budget"},
               {{}, 9, 0, "budget"},       {kSmallUsd, 101, 1, "budget"},
               {kBaseUsd, 9, 0, "budget"}, {{}, 0.5, 0, "budget: nothing fits"}};
  for (const auto& c : cases) {
    BudgetOptions options = Options(c.max_usd);
    options.max_seconds = c.max_seconds;
    EXPECT_TRUE(Make(options)->needs_speeds());
    const auto plan = PlanIn(options, Ask());
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->steps[0].tier, c.tier) << c.max_seconds.value_or(-1);
    EXPECT_EQ(plan->reason, c.reason);
  }
  EXPECT_FALSE(Make(Options({}))->needs_speeds());
}

TEST(BudgetPolicy, ATierOfWhichNoSpeedIsKnownFits) {
  BudgetOptions options = Options({});
  options.max_seconds = 20;
  std::vector<AnswerSpeed> speeds = kSpeeds;
  EXPECT_EQ(PlanIn(options, Ask())->steps[0].tier, 1u);
  speeds[2].seconds_per_token.reset();  // 11 seconds to the first one are
  EXPECT_EQ(PlanIn(options, Ask(), speeds)->steps[0].tier, 2u);
  options.max_seconds = 10.5;
  EXPECT_EQ(PlanIn(options, Ask(), speeds)->steps[0].tier, 1u);
  EXPECT_EQ(PlanIn(options, Ask(), {})->steps[0].tier, 2u);
}

TEST(BudgetPolicy, AnAnswersTimeIsThatOfAsManyTokensAsAreExpected) {
  BudgetOptions options = Options({});
  options.max_seconds = 10.5;
  options.expected_answer_tokens = 90;
  EXPECT_EQ(PlanIn(options, Ask({}, {}))->steps[0].tier, 1u);
  EXPECT_EQ(PlanIn(options, Ask({}, 90, "words", /*choices=*/3))->steps[0].tier, 1u) << "side by side";
  options.expected_answer_tokens = 100;
  EXPECT_EQ(PlanIn(options, Ask({}, {}))->steps[0].tier, 0u);
}

TEST(BudgetPolicy, TheRequestsTimeIsKeptToEvenWhereTheCheapestAnswers) {
  const auto ask = [](double max_seconds) { return Ask({}, 90, "words", 1, max_seconds); };
  EXPECT_EQ(PlanIn(Options({}), ask(11))->steps[0].tier, 1u);
  const auto cheapest = PlanIn(Options(kNanoUsd / 2), ask(2));
  EXPECT_EQ(cheapest->steps[0].tier, 0u);
  EXPECT_EQ(cheapest->reason, "budget: nothing fits");
  EXPECT_TRUE(cheapest->is_limited);
  const Status error = PlanIn(Options({}), ask(0.5)).status();
  EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Reason(error), "budget_too_small");
  EXPECT_EQ(Param(error), "max_seconds");
}

TEST(BudgetPolicy, ARefusalNamesTheBoundThatIsInTheWay) {
  const struct {
    double max_usd, max_seconds;
    const char* text;
  } cases[] = {{kNanoUsd / 2, 200, "USD at the cheapest tier"},
               {kBaseUsd, 0.5, "take 1 seconds at the fastest tier"},
               {kNanoUsd / 2, 0.5, "USD at the cheapest tier"}};
  for (const auto& c : cases) {
    BudgetOptions options = Options(c.max_usd);
    options.max_seconds = c.max_seconds;
    options.refuses = true;
    const Status error = PlanIn(options, Ask()).status();
    EXPECT_EQ(Reason(error), "budget_too_small");
    EXPECT_THAT(Message(error), HasSubstr(c.text));
  }
}

TEST(BudgetPolicy, MayRefuseWhatNothingFits) {
  BudgetOptions options = Options(kNanoUsd / 2);
  options.refuses = true;
  const RequestPtr request = Ask();
  const FixedMeter meter;
  const auto plan = Make(options)->Plan({*request, ReadyTiers(kTiers), meter});
  EXPECT_EQ(plan.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Reason(plan.status()), "budget_too_small");
}

constexpr char kMeasured[] = "as measured";

// Nano is the likelier to be right the more digits a prompt has.
Calibration Example(CalibrationKind kind) {
  const CalibratedGate gate = {
      .scorer = {.features = {{.feature = *FindFeature("digit_share"), .weight = 8}}, .bias = -4}};
  return {.kind = kind,
          .policy = "by prompt",
          .steps = {{.tier = "nano", .model_digest = kMeasured, .gate = gate},
                    {.tier = "base", .model_digest = kMeasured}}};
}

TEST(BudgetPolicy, AClassifierSaysHowGoodATierIsForThePromptWhileItIsNotStale) {
  BudgetOptions options = Options({});
  options.calibration = Example(CalibrationKind::kClassifier);
  const auto policy = Make(options);
  ClusterView view = ReadyTiers(kTiers);
  EXPECT_EQ(PlanOf(*policy, Ask({}, 90, "words"), view).steps[0].tier, 2u);
  EXPECT_EQ(PlanOf(*policy, Ask({}, 90, "12345"), view).steps[0].tier, 0u) << "0.98 against 0.9";
  EXPECT_TRUE(policy->Check(view).ok());
  view.tiers[0].model_digest = "another";
  const TierPlan plan = PlanOf(*policy, Ask({}, 90, "12345"), view);
  EXPECT_EQ(plan.steps[0].tier, 2u);
  EXPECT_EQ(plan.reason, "budget: stale calibration");
  EXPECT_EQ(Reason(policy->Check(view)), "stale_calibration");
}

TEST(BudgetPolicy, RefusesCalibrationsThatItCannotUse) {
  BudgetOptions options = Options({});
  options.calibration = Example(CalibrationKind::kCascade);
  const auto policy = MakeBudgetPolicy(options, kTiers, kPrices);
  EXPECT_EQ(policy.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(policy.status()), HasSubstr("classifier"));
  options.calibration = Example(CalibrationKind::kClassifier);
  options.calibration->steps[0].gate->scorer.features[0].feature = *FindFeature("first_margin");
  EXPECT_THAT(Message(MakeBudgetPolicy(options, kTiers, kPrices).status()), HasSubstr("first_margin"));
  options.calibration = Example(CalibrationKind::kClassifier);
  options.calibration->steps[0].tier = "absent";
  EXPECT_EQ(MakeBudgetPolicy(options, kTiers, kPrices).status().code(), StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace terrace
