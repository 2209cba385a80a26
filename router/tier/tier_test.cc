#include <chrono>
#include <cmath>
#include <optional>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/request/param.h"
#include "router/tier/gate.h"
#include "router/tier/model_catalog.h"
#include "router/tier/price.h"
#include "router/tier/testing_plan.h"
#include "router/tier/tier_policy.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

RequestPtr AnyRequest() { return *Request::Make({.request_id = "r", .input = std::string("x")}); }

TEST(Gate, AcceptsStrictlyAboveItsThreshold) {
  const Gate gate(-0.5);
  const struct {
    AnswerSignals signals;
    bool want;
  } cases[] = {
      {{10, -0.4}, true}, {{10, -0.5}, false},         {{10, -0.6}, false},
      {{0, 0}, false},    {{10, std::nan("")}, false},
  };
  for (const auto& c : cases) EXPECT_EQ(gate.Accepts(c.signals), c.want) << c.signals.mean_logprob;
}

TEST(Gate, WithoutAThresholdAcceptsEverything) {
  EXPECT_TRUE(Gate().Accepts({0, 0}));
  EXPECT_TRUE(Gate().Accepts({3, -100}));
}

TEST(Gate, AClosedOneAcceptsNothingAndIsNotOpen) {
  const Gate closed = Gate::Closed();
  EXPECT_FALSE(closed.is_open());
  EXPECT_FALSE(closed.threshold().has_value());
  EXPECT_FALSE(closed.Accepts({10, 0}));
  EXPECT_TRUE(Gate().is_open());
  EXPECT_FALSE(Gate(-0.5).is_open());
}

TEST(Gate, AnAnswerIsJudgedEarlyFromWhicheverBudgetIsUsedUpFirst) {
  using std::chrono::milliseconds;
  const HoldBudget both = {.tokens = 4, .time = milliseconds(100), .accept_above = -0.2, .reject_below = -1};
  const HoldBudget accepts = {.tokens = 4, .accept_above = -0.2}, rejects = {.tokens = 4, .reject_below = -1};
  const struct {
    const char* name;
    HoldBudget hold;
    uint32_t tokens;
    double mean_logprob;
    int held_millis;
    Verdict want;
  } cases[] = {
      {"neither is used up", both, 3, -0.1, 99, Verdict::kUndecided},
      {"so many tokens", both, 4, -0.1, 0, Verdict::kAccepted},
      {"so long", both, 1, -0.1, 100, Verdict::kAccepted},
      {"nothing was said yet", both, 0, 0, 100, Verdict::kUndecided},
      {"on the upper bound", both, 4, -0.2, 0, Verdict::kUndecided},
      {"between the bounds", both, 9, -0.5, 900, Verdict::kUndecided},
      {"on the lower bound", both, 4, -1, 0, Verdict::kUndecided},
      {"below it", both, 4, -1.1, 0, Verdict::kRejected},
      {"not a number", both, 4, std::nan(""), 0, Verdict::kUndecided},
      {"only accepts", accepts, 4, -9, 0, Verdict::kUndecided},
      {"only rejects", rejects, 4, -0.1, 0, Verdict::kUndecided},
      {"no budget", {}, 1000, -0.1, 9000, Verdict::kUndecided},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(Gate(-0.5, c.hold).JudgeEarly({c.tokens, c.mean_logprob}, milliseconds(c.held_millis)), c.want)
        << c.name;
  }
}

TEST(Gate, AScorersProbabilityIsMeasuredAgainstTheThreshold) {
  GateScorer scorer{.bias = 1};
  scorer.weights[0] = 2;  // of the mean log-probability
  const AnswerSignals even = {10, -0.5};
  EXPECT_DOUBLE_EQ(scorer.Probability(even), 0.5);
  EXPECT_NEAR(scorer.Probability({10, 0}), 1 / (1 + std::exp(-1.0)), 1e-15);
  EXPECT_EQ(scorer.Probability({10, -1e9}), 0) << "far out, without a NaN";
  EXPECT_FALSE(Gate(scorer, 0.5).Accepts(even)) << "strictly above";
  EXPECT_TRUE(Gate(scorer, 0.49).Accepts(even));
  EXPECT_FALSE(Gate(scorer, 0.49).Accepts({10, std::nan("")}));
  EXPECT_FALSE(Gate(scorer, 0.49).Accepts({0, 0})) << "no tokens";
  const HoldBudget hold = {.tokens = 1, .accept_above = 0.6, .reject_below = 0.4};
  EXPECT_EQ(Gate(scorer, 0.5, hold).JudgeEarly({10, 0}, Duration(0)), Verdict::kAccepted);
  EXPECT_EQ(Gate(scorer, 0.5, hold).JudgeEarly(even, Duration(0)), Verdict::kUndecided);
  EXPECT_EQ(Gate(scorer, 0.5, hold).JudgeEarly({10, -9}, Duration(0)), Verdict::kRejected);
}

TEST(Gate, AFinalHoldDecidesByTheGatesThresholdAlone) {
  GateScorer scorer;
  scorer.weights[2] = 1;  // of the first log-probability
  const Gate gate(scorer, 0.5, {.tokens = 2, .is_final = true});
  const struct {
    uint32_t tokens;
    double first_logprob;
    Verdict want;
  } cases[] = {{1, 1, Verdict::kUndecided}, {2, 1, Verdict::kAccepted},
               {2, 0, Verdict::kRejected},  {2, -1, Verdict::kRejected},
               {0, 1, Verdict::kUndecided}, {2, std::nan(""), Verdict::kRejected}};
  for (const auto& c : cases) {
    const AnswerSignals signals{.tokens = c.tokens, .first_logprob = c.first_logprob};
    EXPECT_EQ(gate.JudgeEarly(signals, Duration(0)), c.want) << c.tokens << " " << c.first_logprob;
  }
  for (const Verdict verdict : {Verdict::kUndecided, Verdict::kAccepted, Verdict::kRejected})
    EXPECT_EQ(gate.threshold(verdict), 0.5);
}

TEST(Gate, TheScoreIsWhatIsComparedWithTheThreshold) {
  const GateScorer scorer{.bias = 0.7};
  const AnswerSignals signals = {3, -0.25};
  EXPECT_EQ(Gate(-0.5).Score(signals), -0.25);
  EXPECT_EQ(Gate(scorer, 0.5).Score(signals), scorer.Probability(signals));
  EXPECT_EQ(Gate(scorer, 0.5).Score({}), std::nullopt) << "no tokens";
  EXPECT_EQ(Gate().Score(signals), std::nullopt);
  EXPECT_EQ(Gate::Closed().Score(signals), std::nullopt);
}

TEST(Gate, WorkersAreAskedForSignalsOnlyWhenAScorerLooksAtThem) {
  EXPECT_FALSE(Gate().needs_signals());
  EXPECT_FALSE(Gate(-0.5).needs_signals());
  for (size_t i = 0; i < GateScorer::kSignals; ++i) {
    GateScorer scorer;
    scorer.weights[i] = -1;
    EXPECT_EQ(Gate(scorer, 0.5).needs_signals(), i >= GateScorer::kOfLogprobs) << i;
  }
}

TEST(GateScorer, AMarginThatIsInfiniteMattersOnlyToWhoWeighsIt) {
  AnswerSignals signals = {1, -0.1};
  signals.mean_margin = HUGE_VAL;
  EXPECT_EQ(GateScorer().Probability(signals), 0.5);
}

TEST(SignalMeter, MeansLeastOnesAndThoseOfTheFirstToken) {
  SignalMeter meter;
  EXPECT_EQ(meter.signals().tokens, 0u);
  EXPECT_EQ(meter.signals().mean_logprob, 0);
  meter.Add(/*logprob=*/-2, /*margin=*/0.5, /*entropy=*/1);
  meter.Add(-4, 0.25, 2);
  meter.Add(-3, 3, 6);
  const AnswerSignals signals = meter.signals();
  EXPECT_EQ(signals.tokens, 3u);
  EXPECT_DOUBLE_EQ(signals.mean_logprob, -3);
  EXPECT_EQ(signals.min_logprob, -4);
  EXPECT_DOUBLE_EQ(signals.mean_margin, 1.25);
  EXPECT_EQ(signals.min_margin, 0.25);
  EXPECT_DOUBLE_EQ(signals.mean_entropy, 3);
  EXPECT_EQ(signals.first_logprob, -2);
  EXPECT_EQ(signals.first_margin, 0.5);
  EXPECT_EQ(signals.first_entropy, 1);
}

TEST(Price, IsLinearInPromptAndCompletionTokensAndCountsCachedOnesAsPrompt) {
  const TierPrice price{2, 6};
  EXPECT_DOUBLE_EQ(PriceUsd(price, {1'000'000, 0, 0}), 2);
  EXPECT_DOUBLE_EQ(PriceUsd(price, {0, 0, 1'000'000}), 6);
  EXPECT_DOUBLE_EQ(PriceUsd(price, {100, 100, 10}), (200 + 60) / 1e6);
  EXPECT_DOUBLE_EQ(PriceUsd(price, {}), 0);
}

// Asks for a first log-probability above ln(threshold / (1 - threshold)).
Gate OfFirstToken(double threshold) {
  GateScorer scorer;
  scorer.weights[2] = 1;
  return Gate(scorer, threshold);
}

TEST(NextStep, IsTheNextOneUnlessStepsAskForMoreOfTheFirstAnswer) {
  const std::vector<PlanStep> cascade = {{.gate = Gate(-1)}, {.gate = Gate(-1)}, {}};
  const std::vector<PlanStep> choosing = {
      {.gate = OfFirstToken(0.9)}, {.choice = OfFirstToken(0.5)}, {.choice = OfFirstToken(0.1)}, {}};
  const auto first = [](double logprob) { return AnswerSignals{.tokens = 1, .first_logprob = logprob}; };
  for (const AnswerSignals& any : {AnswerSignals(), first(-9)}) {
    EXPECT_EQ(NextStep(cascade, 0, any), 1u);
    EXPECT_EQ(NextStep(cascade, 1, any), 2u);
  }
  EXPECT_EQ(NextStep(choosing, 0, first(0.1)), 1u);
  EXPECT_EQ(NextStep(choosing, 0, first(0)), 2u) << "strictly above";
  EXPECT_EQ(NextStep(choosing, 0, first(-9)), 3u);
  EXPECT_EQ(NextStep(choosing, 0, first(std::nan(""))), 3u);
  EXPECT_EQ(NextStep(choosing, 0, {}), 3u) << "nothing is known: the last one";
  EXPECT_EQ(NextStep(choosing, 1, first(0.1)), 2u) << "the one that was chosen cannot be had";
  EXPECT_EQ(NextStep(choosing, 2, first(0.1)), 3u);
}

TEST(NeedsSignals, OfAStepForItsOwnGateAndOfTheFirstForAllChoices) {
  GateScorer margins;
  margins.weights[GateScorer::kOfLogprobs] = 1;
  const std::vector<PlanStep> steps = {{.gate = OfFirstToken(0.5)}, {.choice = Gate(margins, 0.5)}, {}};
  EXPECT_TRUE(NeedsSignals(steps, 0));
  EXPECT_FALSE(NeedsSignals(steps, 1));
  const std::vector<PlanStep> cascade = {{.gate = Gate(-1)}, {.gate = Gate(margins, 0.5)}, {}};
  EXPECT_FALSE(NeedsSignals(cascade, 0));
  EXPECT_TRUE(NeedsSignals(cascade, 1));
}

TEST(ReasonOf, SaysTheStepOfACascadeAndWhetherTheFirstTokenWasThere) {
  EXPECT_EQ(ReasonOf({.reason = "cascade", .names_step = true}, 1, {}), "cascade: accepted at step 2");
  EXPECT_EQ(ReasonOf({.reason = "named"}, 0, {}), "named");
  const TierPlan choosing{.reason = "classifier: first token", .chooses_by_first_token = true};
  EXPECT_EQ(ReasonOf(choosing, 1, {.tokens = 1}), "classifier: first token");
  EXPECT_EQ(ReasonOf(choosing, 1, {}), "fallback: no first token");
  EXPECT_EQ(ReasonOf(choosing, 0, {}), "classifier: first token") << "as a request that only scores has it";
}

TEST(CascadePolicy, KeepsTheOrderAndOnlyTheLastGateIsOpen) {
  const auto policy = MakeCascadePolicy({{1, Gate(-0.2)}, {0, Gate(-0.3), true}, {2, {}, true}});
  const TierPlan plan = PlanOf(*policy, AnyRequest(), {});
  const std::vector<PlanStep>& steps = plan.steps;
  ASSERT_EQ(steps.size(), 3u);
  EXPECT_EQ(steps[0].tier, 1u);
  EXPECT_EQ(steps[0].gate.threshold(), -0.2);
  EXPECT_EQ(steps[1].gate.threshold(), -0.3);
  EXPECT_TRUE(steps[1].verifies);
  EXPECT_EQ(steps[2].tier, 2u);
  EXPECT_TRUE(steps[2].gate.is_open());
}

TEST(TierPolicy, SaysWhy) {
  const auto named = MakeNamedPolicy(0);
  const auto cascade = MakeCascadePolicy({{0, Gate(-0.2)}, {.tier = 1}});
  const auto verify = MakeCascadePolicy({{0, Gate::Closed()}, {1, {}, true}});
  const struct {
    const TierPolicy& policy;
    const char* reason;
    bool names_step, is_measured;
  } cases[] = {
      {*named, "named", false, false}, {*cascade, "cascade", true, true}, {*verify, "verify", false, true}};
  for (const auto& c : cases) {
    const TierPlan plan = PlanOf(c.policy, AnyRequest(), {});
    EXPECT_EQ(plan.reason, c.reason);
    EXPECT_EQ(plan.names_step, c.names_step) << c.reason;
    EXPECT_EQ(plan.is_measured, c.is_measured) << c.reason;
  }
}

StatusOr<std::unique_ptr<ModelCatalog>> DemoCatalog(const std::string& default_model) {
  return ModelCatalog::Make({{.name = "nano", .aliases = {"gpt-tiny"}}, {.name = "base"}},
                            {{.name = "auto", .steps = {{0, Gate(-0.1)}, {.tier = 1}}}}, default_model);
}

TEST(ModelCatalog, FindsTiersPoliciesAndAliases) {
  const auto catalog = DemoCatalog("");
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  EXPECT_EQ((*(*catalog)->Find("base"))->id, "base");
  EXPECT_EQ((*(*catalog)->Find("gpt-tiny"))->id, "nano");
  EXPECT_TRUE((*(*catalog)->Find("auto"))->is_policy);
  EXPECT_THAT((*(*catalog)->Find("auto"))->tiers, ElementsAre(0, 1));
}

TEST(ModelCatalog, NoNameMeansTheDefault) {
  EXPECT_EQ((*(*DemoCatalog(""))->Find(""))->id, "auto");
  EXPECT_EQ((*(*DemoCatalog("gpt-tiny"))->Find(""))->id, "nano");
  const auto only_tiers = ModelCatalog::Make({{.name = "nano"}, {.name = "base"}}, {}, "");
  EXPECT_EQ((*(*only_tiers)->Find(""))->id, "nano");
}

TEST(ModelCatalog, AnUnknownNameIsModelNotFound) {
  const auto found = (*DemoCatalog(""))->Find("../x");
  EXPECT_EQ(found.status().code(), StatusCode::kNotFound);
  EXPECT_EQ(Reason(found.status()), "model_not_found");
  EXPECT_EQ(Param(found.status()), "model");
  EXPECT_THAT(Message(found.status()), HasSubstr("\"../x\""));
}

TEST(ModelCatalog, AnUnknownNameIsEchoedOnlyWhenItIsPlainAndShort) {
  const auto catalog = DemoCatalog("");
  const std::string longest(64, 'm');
  EXPECT_THAT(Message((*catalog)->Find(longest).status()), HasSubstr(longest));
  for (const std::string& name :
       {longest + "m", std::string("a b"), std::string("a\n"), std::string("caf\xc3\xa9"), std::string("<x>"),
        std::string("a\"b"), std::string("a\0b", 3)}) {
    const Status error = (*catalog)->Find(name).status();
    EXPECT_EQ(Reason(error), "model_not_found") << name;
    EXPECT_EQ(Message(error).find(name.substr(0, 3)), std::string::npos) << Message(error);
  }
}

TEST(ModelCatalog, ANameForTwoThingsOrAnUnknownDefaultIsRefused) {
  EXPECT_EQ(DemoCatalog("absent").status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(ModelCatalog::Make({{.name = "a"}, {.name = "a"}}, {}, "").status().code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(ModelCatalog::Make({{.name = "a", .aliases = {"p"}}}, {{.name = "p", .steps = {{.tier = 0}}}}, "")
                .status()
                .code(),
            StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace terrace
