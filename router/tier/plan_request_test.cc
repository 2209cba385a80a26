#include "router/tier/plan_request.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/request/param.h"
#include "router/tier/testing_plan.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A prompt of 10 tokens and an answer of 90 cost 100, 1,000 and 10,000 millionths.
constexpr double kNanoUsd = 100e-6, kSmallUsd = 1000e-6, kBaseUsd = 10'000e-6;

// A classifier that looks at the first token.
Calibration OfFirstToken() {
  const CalibratedGate gate = {.scorer = {.features = {{.feature = *FindFeature("first_logprob")}}},
                               .threshold = 0.9};
  return {.kind = CalibrationKind::kClassifier,
          .policy = "begun",
          .steps = {{.tier = "nano", .gate = gate}, {.tier = "small", .gate = gate}, {.tier = "base"}}};
}

class PlanRequestTest : public ::testing::Test {
 protected:
  PlanRequestTest()
      : catalog_(*ModelCatalog::Make(
            {{.name = "nano", .price = {1, 1}, .aliases = {"tiny"}},
             {.name = "small", .price = {10, 10}},
             {.name = "base", .price = {100, 100}}},
            {{.name = "auto", .steps = {{0, Gate(-0.1)}, {1, Gate(-0.2), true}, {2, {}, true}}},
             {.name = "checked", .steps = {{0, Gate::Closed()}, {2, {}, true}}},
             {.name = "begun", .calibration = OfFirstToken()},
             {.name = "priced", .budget = BudgetOptions{.candidates = {{0, 0.5}, {1, 0.9}}, .max_usd = 1}}},
            "")) {}

  StatusOr<TierPlan> Plan(const std::string& model, const std::string& tier,
                          std::optional<double> max_usd = {}, bool has_drifted = false,
                          const FixedMeter& meter = FixedMeter(), const TenantPtr& tenant = DefaultTenant(),
                          std::optional<double> max_seconds = {}) {
    const RequestPtr request = *Request::Make({.api = ApiKind::kOpenAiChat,
                                               .request_id = "r",
                                               .tier = tier,
                                               .max_usd = max_usd,
                                               .max_seconds = max_seconds,
                                               .input = std::string("x"),
                                               .max_tokens = 90,
                                               .tenant = tenant});
    const ClusterView view = ReadyTiers({"nano", "small", "base"});
    return PlanRequest(*catalog_, **catalog_->Find(model), has_drifted, {*request, view, meter, speeds_});
  }
  StatusOr<TierPlan> PlanWithin(const std::string& model, const std::string& tier, double max_seconds,
                                std::optional<double> max_usd = {}) {
    return Plan(model, tier, max_usd, false, FixedMeter(), DefaultTenant(), max_seconds);
  }
  static std::vector<size_t> Tiers(const StatusOr<TierPlan>& plan) {
    CHECK(plan.ok(), Message(plan.status()));
    std::vector<size_t> out;
    for (const PlanStep& step : plan->steps) out.push_back(step.tier);
    return out;
  }

  const std::unique_ptr<ModelCatalog> catalog_;
  // An answer of 90 tokens takes 1, 10 and 100 seconds.
  std::vector<AnswerSpeed> speeds_ = {{0.11, 0.01}, {1.1, 0.1}, {11, 1}};
};

TEST_F(PlanRequestTest, ARequestMayNameOneOfItsModelsTiers) {
  const auto plan = Plan("auto", "small");
  EXPECT_THAT(Tiers(plan), ElementsAre(1));
  EXPECT_EQ(plan->reason, "override");
  EXPECT_TRUE(plan->steps[0].gate.is_open());
  EXPECT_THAT(Tiers(Plan("tiny", "nano")), ElementsAre(0));
}

TEST_F(PlanRequestTest, AnotherTierIsAnErrorThatNamesThoseThereAre) {
  const std::pair<const char*, const char*> cases[] = {
      {"checked", "small"}, {"small", "base"}, {"auto", "auto"}, {"auto", "tiny"}, {"auto", "no\nsuch"}};
  for (const auto& [model, tier] : cases) {
    const Status error = Plan(model, tier).status();
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument) << model << " " << tier;
    EXPECT_EQ(Reason(error), "invalid_value");
    EXPECT_EQ(Param(error), "x-terrace-tier");
  }
  EXPECT_THAT(Message(Plan("checked", "small").status()), HasSubstr("one of nano, base"));
}

TEST_F(PlanRequestTest, ATierThatTheTenantMayNotUseIsRefusedWhereARequestNamesIt) {
  const auto tenant = std::make_shared<Tenant>(Tenant{.name = "a", .models = {"auto", "small"}});
  const auto plan = [&](const char* tier) { return Plan("auto", tier, {}, false, FixedMeter(), tenant); };
  EXPECT_THAT(Tiers(plan("small")), ElementsAre(1));
  EXPECT_EQ(plan("base").status().code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(Reason(plan("base").status()), "model_not_allowed");
  EXPECT_THAT(Tiers(plan("")), ElementsAre(0, 1, 2)) << "the policy may";
}

TEST_F(PlanRequestTest, AStepThatCannotHaveThePromptCostsNothingUnlessItIsTheLastOne) {
  FixedMeter meter;
  const Status error = ParamError("context_length_exceeded", "prompt", "too long");
  meter.errors["nano"] = error;
  EXPECT_THAT(Tiers(Plan("auto", "", kBaseUsd, false, meter)), ElementsAre(1));
  EXPECT_THAT(Tiers(Plan("auto", "", (kSmallUsd + kBaseUsd) * 1.001, false, meter)), ElementsAre(0, 1, 2));
  EXPECT_EQ(Reason(Plan("auto", "", kNanoUsd, false, meter).status()), "budget_too_small");
  EXPECT_EQ(Plan("nano", "", kNanoUsd, false, meter).status(), error);
  meter.errors = {{"base", error}};
  EXPECT_EQ(Plan("auto", "", kBaseUsd, false, meter).status(), error) << "as without a limit";
}

TEST_F(PlanRequestTest, APolicyThatHasDriftedIsItsLastTierUnlessTheRequestNamesOne) {
  const auto plan = Plan("auto", "", {}, /*has_drifted=*/true);
  EXPECT_THAT(Tiers(plan), ElementsAre(2));
  EXPECT_EQ(plan->reason, "fallback: drift");
  EXPECT_THAT(Tiers(Plan("auto", "nano", {}, true)), ElementsAre(0));
}

TEST_F(PlanRequestTest, StepsThatDoNotFitTheRequestsLimitTogetherAreLeftOut) {
  const double all = kNanoUsd + kSmallUsd + kBaseUsd;
  const struct {
    const char* model;
    double max_usd;
    std::vector<size_t> tiers;
    const char* reason;
  } cases[] = {
      {"auto", all * 1.001, {0, 1, 2}, "cascade"},
      {"auto", all * 0.999, {0, 1}, "cascade, within the request's limit"},
      {"auto", kSmallUsd, {0}, "cascade, within the request's limit"},
      {"checked", (kNanoUsd + kBaseUsd) * 1.001, {0, 2}, "verify"},
      {"checked", kBaseUsd * 1.001, {2}, "verify, within the request's limit"},
      {"base", kBaseUsd * 1.001, {2}, "named"},
      {"priced", kSmallUsd * 1.001, {1}, "budget"},
  };
  for (const auto& c : cases) {
    const auto plan = Plan(c.model, "", c.max_usd);
    EXPECT_EQ(Tiers(plan), c.tiers) << c.model << " " << c.max_usd;
    EXPECT_EQ(plan->reason, c.reason);
    EXPECT_TRUE(plan->steps.back().gate.is_open());
    EXPECT_FALSE(plan->steps.front().verifies);
  }
}

TEST_F(PlanRequestTest, StepsThatDoNotFitTheRequestsTimeTogetherAreLeftOutToo) {
  const struct {
    const char* model;
    double max_seconds;
    std::optional<double> max_usd;
    std::vector<size_t> tiers;
    const char* reason;
  } cases[] = {{"auto", 112, {}, {0, 1, 2}, "cascade"},
               {"auto", 110, {}, {0, 1}, "cascade, within the request's limit"},
               {"auto", 10.5, {}, {0}, "cascade, within the request's limit"},
               {"auto", 110, kNanoUsd * 1.001, {0}, "cascade, within the request's limit"},
               {"checked", 100.5, {}, {2}, "verify, within the request's limit"},
               {"small", 10.5, {}, {1}, "named"},
               {"priced", 10.5, {}, {1}, "budget"},
               {"priced", 9, {}, {0}, "budget"}};
  for (const auto& c : cases) {
    const auto plan = PlanWithin(c.model, "", c.max_seconds, c.max_usd);
    EXPECT_EQ(Tiers(plan), c.tiers) << c.model << " " << c.max_seconds;
    EXPECT_EQ(plan->reason, c.reason);
    EXPECT_TRUE(plan->steps.back().gate.is_open());
  }
  const std::pair<const char*, const char*> refused[] = {
      {"auto", ""}, {"checked", ""}, {"small", ""}, {"priced", ""}, {"auto", "base"}};
  for (const auto& [model, tier] : refused) {
    const Status error = PlanWithin(model, tier, 0.5).status();
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument) << model;
    EXPECT_EQ(Reason(error), "budget_too_small");
    EXPECT_EQ(Param(error), "x-terrace-max-seconds");
  }
  EXPECT_THAT(Message(PlanWithin("checked", "", 50).status()), HasSubstr("take 100 seconds"));
  speeds_.clear();
  EXPECT_THAT(Tiers(PlanWithin("auto", "", 0)), ElementsAre(0, 1, 2)) << "nothing is known";
}

TEST_F(PlanRequestTest, WhatIsLeftOfAChoiceByTheFirstTokenChoosesAmongWhatFits) {
  const double all = kNanoUsd + kSmallUsd + kBaseUsd;
  const struct {
    double max_usd;
    std::vector<size_t> tiers;
    bool chooses;
  } cases[] = {{all * 1.001, {0, 1, 2}, true}, {all * 0.999, {0, 1}, true}, {kNanoUsd * 1.001, {0}, false}};
  for (const auto& c : cases) {
    const auto plan = Plan("begun", "", c.max_usd);
    EXPECT_EQ(Tiers(plan), c.tiers) << c.max_usd;
    EXPECT_EQ(plan->chooses_by_first_token, c.chooses);
    EXPECT_EQ(plan->steps.front().gate.is_open(), !c.chooses);
    EXPECT_TRUE(plan->steps.back().gate.is_open() && plan->steps.back().choice.is_open());
    EXPECT_EQ(plan->is_measured, c.tiers.size() == 3);
  }
  FixedMeter meter;
  meter.errors["nano"] = ParamError("context_length_exceeded", "prompt", "too long");
  const auto without = Plan("begun", "", kSmallUsd * 1.001, false, meter);
  EXPECT_THAT(Tiers(without), ElementsAre(1));
  EXPECT_FALSE(without->chooses_by_first_token) << "there is nobody to begin";
  EXPECT_EQ(without->reason, "fallback: no first token, within the request's limit");
  speeds_ = {{11, 1}, {0.11, 0.01}, {1.1, 0.1}};  // nano's queue is long
  const auto late = PlanWithin("begun", "", 12);
  EXPECT_THAT(Tiers(late), ElementsAre(2)) << "small and base fit: unjudged the best one answers";
  EXPECT_FALSE(late->steps[0].verifies || late->chooses_by_first_token);
}

TEST_F(PlanRequestTest, WhereNothingFitsTheErrorHasTheLeastPrice) {
  const std::pair<const char*, const char*> cases[] = {
      {"auto", ""}, {"checked", ""}, {"base", ""}, {"priced", ""}, {"auto", "base"}};
  for (const auto& [model, tier] : cases) {
    const Status error = Plan(model, tier, kNanoUsd / 2).status();
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument) << model;
    EXPECT_EQ(Reason(error), "budget_too_small");
    EXPECT_EQ(Param(error), "x-terrace-max-usd");
  }
  EXPECT_THAT(Message(Plan("checked", "", kNanoUsd).status()), HasSubstr("may cost 0.01 USD"));
  EXPECT_EQ(Reason(Plan("auto", "", kBaseUsd, /*has_drifted=*/true).status()), "") << "it fits";
}

}  // namespace
}  // namespace terrace
