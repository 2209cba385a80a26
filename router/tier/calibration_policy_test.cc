#include "router/tier/calibration_policy.h"

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/tier/testing_plan.h"

namespace terrace {
namespace {

using testing::HasSubstr;

RequestPtr Ask(RequestInput input) { return *Request::Make({.request_id = "r", .input = std::move(input)}); }

AnswerSignals DrawSignals(uint64_t seed) {
  uint64_t draw = 0;
  SignalMeter meter;
  for (uint64_t token = 0; token < 1 + seed % 9; ++token) {
    const double margin = 5 * RandomUniform(seed, draw++), entropy = RandomUniform(seed, draw++);
    meter.Add(-RandomUniform(seed, draw++), margin, entropy);
  }
  return meter.signals();
}

TEST(GateScorer, IsTheScorerForEveryAnswerToThePrompt) {
  FeatureScorer scorer{.bias = -0.2};
  for (const Feature& feature : AllFeatures()) {
    if (feature.source == FeatureSource::kDerived || feature.source == FeatureSource::kAgreement) continue;
    const double place = static_cast<double>(scorer.features.size()) + 1;
    scorer.features.push_back(
        {.feature = &feature, .weight = 1 / place - 0.2, .mean = place / 4, .scale = 1 + place});
  }
  PromptTraits traits;
  traits.Add("What is {x} if y = 37?\n");
  const auto gate = GateScorerOf(scorer, traits);
  ASSERT_TRUE(gate.ok()) << gate.status();
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const FeatureInputs inputs = {.answer = DrawSignals(seed), .prompt = traits};
    EXPECT_NEAR(gate->Probability(inputs.answer), scorer.Probability(inputs), 1e-12) << "seed " << seed;
  }
}

TEST(GateScorer, RefusesFeaturesThatGatesDoNotTake) {
  for (const Feature& feature : AllFeatures()) {
    const auto gate = GateScorerOf({.features = {{.feature = &feature}}}, {});
    const bool is_taken =
        feature.source != FeatureSource::kDerived && feature.source != FeatureSource::kAgreement;
    EXPECT_EQ(gate.ok(), is_taken) << feature.name;
    if (is_taken) continue;
    EXPECT_THAT(Message(gate.status()), HasSubstr(std::string(feature.name)));
  }
}

TEST(TraitsOf, AChatIsWhatItsMessagesSay) {
  const PromptTraits chat =
      TraitsOf(std::vector<ChatMessage>{{.role = "system", .content = "a1?"}, {.content = "\n{"}});
  EXPECT_EQ(chat, TraitsOf(std::string("a1?\n{")));
  EXPECT_EQ(TraitsOf(std::vector<TokenId>{1, 2}), PromptTraits());
}

// Probability rises with the digits of a prompt.
CalibratedGate GateOnDigits(double threshold) {
  return {.scorer = {.features = {{.feature = *FindFeature("digit_share"), .weight = 8}}, .bias = -4},
          .threshold = threshold};
}

constexpr char kMeasured[] = "as measured";

Calibration Example(CalibrationKind kind) {
  return {.kind = kind,
          .policy = "auto",
          .steps = {{.tier = "nano", .model_digest = kMeasured, .gate = GateOnDigits(0.9)},
                    {.tier = "small", .model_digest = kMeasured, .gate = GateOnDigits(0.4)},
                    {.tier = "base", .model_digest = kMeasured}}};
}

const std::vector<std::string> kTiers = {"base", "small", "nano"};  // as the router has them, in its order

// "": no tier has been ready yet.
ClusterView Serving(const std::string& digest_of_small) {
  ClusterView view;
  for (const std::string& name : kTiers) {
    TierView& tier = view.tiers.emplace_back();
    tier.name = name;
    if (!digest_of_small.empty()) tier.model_digest = name == "small" ? digest_of_small : kMeasured;
  }
  return view;
}

TEST(CalibratedPolicy, WhileATierServesAnotherModelTheLastOneAnswersAlone) {
  for (const auto kind : {CalibrationKind::kCascade, CalibrationKind::kClassifier}) {
    const auto policy = MakeCalibratedPolicy(Example(kind), kTiers, {.verifies = true});
    ASSERT_TRUE(policy.ok()) << policy.status();
    const TierPlan plan = PlanOf(**policy, Ask(std::string("1234567890")), Serving("another"));
    ASSERT_EQ(plan.steps.size(), 1u);
    EXPECT_EQ(plan.steps[0].tier, 0u);
    EXPECT_TRUE(plan.steps[0].gate.is_open());
    EXPECT_EQ(plan.reason, "fallback: stale calibration");
    EXPECT_FALSE(plan.is_measured);
    EXPECT_EQ(Reason((*policy)->Check(Serving("another"))), "stale_calibration");
    EXPECT_TRUE((*policy)->Check(Serving(kMeasured)).ok());
    EXPECT_TRUE((*policy)->Check(Serving("")).ok());
  }
}

TEST(CalibratedPolicy, ACascadeAsksTheTiersInOrderWithTheirGates) {
  const auto policy = MakeCalibratedPolicy(Example(CalibrationKind::kCascade), kTiers, {.verifies = true});
  ASSERT_TRUE(policy.ok()) << policy.status();
  for (const char* prompt : {"words", "1234567890"}) {
    const TierPlan all = PlanOf(**policy, Ask(std::string(prompt)), Serving(""));
    EXPECT_EQ(all.reason, "cascade");
    EXPECT_TRUE(all.names_step && all.is_measured);
    const std::vector<PlanStep>& plan = all.steps;
    ASSERT_EQ(plan.size(), 3u);
    EXPECT_EQ(plan[0].tier, 2u);
    EXPECT_EQ(plan[1].tier, 1u);
    EXPECT_EQ(plan[2].tier, 0u);
    EXPECT_FALSE(plan[0].verifies);
    EXPECT_TRUE(plan[1].verifies && plan[2].verifies);
    EXPECT_EQ(plan[0].gate.threshold(), 0.9);
    EXPECT_TRUE(plan[2].gate.is_open());
    EXPECT_EQ(plan[0].gate.Accepts({.tokens = 1}), prompt[0] == '1');
  }
}

TEST(CalibratedPolicy, AClassifierChoosesTheFirstTierThatIsSure) {
  const auto policy = MakeCalibratedPolicy(Example(CalibrationKind::kClassifier), kTiers);
  ASSERT_TRUE(policy.ok()) << policy.status();
  const struct {
    const char* prompt;
    size_t tier;
  } cases[] = {{"1234", 2}, {"12ab", 1}, {"abcd", 0}};  // probabilities 0.98, 0.5, 0.02
  for (const auto& c : cases) {
    const TierPlan plan = PlanOf(**policy, Ask(std::string(c.prompt)), Serving("as measured"));
    ASSERT_EQ(plan.steps.size(), 1u);
    EXPECT_EQ(plan.steps[0].tier, c.tier) << c.prompt;
    EXPECT_TRUE(plan.steps[0].gate.is_open());
    EXPECT_EQ(plan.reason, "classifier");
    EXPECT_TRUE(plan.is_measured);
  }
}

TEST(CalibratedPolicy, ALargerTiersCacheMayOutweighTheClassifiersChoiceAndNoSmallerOnes) {
  const std::vector<TierPrice> prices = {{100, 100}, {10, 10}, {1, 1}};  // base, small, nano
  const auto policy =
      MakeCalibratedPolicy(Example(CalibrationKind::kClassifier), kTiers, {.affinity_prices = prices});
  ASSERT_TRUE(policy.ok()) << policy.status();
  const struct {
    const char* name;
    const char* prompt;
    std::map<std::string, size_t> cached;
    size_t tier;
  } cases[] = {{"nothing is cached", "1234", {}, 2},
               {"not enough of it", "1234", {{"small", 800}, {"base", 980}}, 2},
               {"small has less than a tenth left", "1234", {{"small", 901}}, 1},
               {"base has less than a hundredth left", "1234", {{"small", 901}, {"base", 999}}, 0},
               {"nano has it too", "1234", {{"nano", 1000}, {"base", 1000}}, 2},
               {"a smaller tier has all of it", "12ab", {{"nano", 1000}}, 1},
               {"the largest is chosen", "abcd", {{"nano", 1000}, {"small", 1000}}, 0}};
  for (const auto& c : cases) {
    ClusterView view = Serving("as measured");
    for (TierView& tier : view.tiers) tier.ready.emplace_back();
    const auto ask = Ask(std::string(c.prompt));
    EXPECT_EQ(PlanOf(**policy, ask, view, FixedMeter(1000, c.cached)).steps[0].tier, c.tier) << c.name;
  }
  ClusterView none_ready = Serving("as measured");
  EXPECT_EQ(PlanOf(**policy, Ask(std::string("1234")), none_ready, FixedMeter(1000, {{"base", 1000}}))
                .steps[0]
                .tier,
            2u);
}

TEST(CalibratedPolicy, TheCacheOfATierThatTheRequestCannotHaveOutweighsNothing) {
  const std::vector<TierPrice> prices = {{100, 100}, {10, 10}, {1, 1}};  // base, small, nano
  const auto policy =
      MakeCalibratedPolicy(Example(CalibrationKind::kClassifier), kTiers, {.affinity_prices = prices});
  ASSERT_TRUE(policy.ok()) << policy.status();
  ClusterView view = Serving("as measured");
  for (TierView& tier : view.tiers) tier.ready.emplace_back();
  FixedMeter meter(1000, {{"small", 901}, {"base", 1000}});
  const auto ask = [](std::optional<double> max_usd) {
    return *Request::Make(
        {.request_id = "r", .max_usd = max_usd, .input = std::string("1234"), .max_tokens = 1000});
  };
  EXPECT_EQ(PlanOf(**policy, ask({}), view, meter).steps[0].tier, 0u);
  EXPECT_EQ(PlanOf(**policy, ask(0.19), view, meter).steps[0].tier, 1u) << "0.2 at base, 0.02 at small";
  EXPECT_EQ(PlanOf(**policy, ask(0.019), view, meter).steps[0].tier, 2u);
  meter.errors["base"] = InvalidArgument("too long");
  EXPECT_EQ(PlanOf(**policy, ask({}), view, meter).steps[0].tier, 1u);
  meter.errors["small"] = InvalidArgument("no tools");
  EXPECT_EQ(PlanOf(**policy, ask({}), view, meter).steps[0].tier, 2u);
}

// As Example, but small's scorer adds the first log-probability of nano's answer, and nano's alone looks at
// it.
Calibration OfFirstToken() {
  Calibration calibration = Example(CalibrationKind::kClassifier);
  calibration.steps[0].gate->scorer = {.features = {{.feature = *FindFeature("first_logprob"), .weight = 2}},
                                       .bias = 3};
  calibration.steps[1].gate->scorer.features.push_back(
      {.feature = *FindFeature("first_logprob"), .weight = 1, .mean = -1, .scale = 2});
  return calibration;
}

TEST(CalibratedPolicy, AClassifierOfTheFirstTokenHoldsItAndChoosesAsItsScorersDo) {
  const Calibration calibration = OfFirstToken();
  const auto policy = MakeCalibratedPolicy(calibration, kTiers, {.verifies = true});
  ASSERT_TRUE(policy.ok()) << policy.status();
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const std::string prompt = std::string(1 + seed % 5, '7') + std::string(seed % 7, 'x');
    const TierPlan plan = PlanOf(**policy, Ask(prompt), Serving(kMeasured));
    EXPECT_EQ(plan.reason, "classifier: first token");
    EXPECT_TRUE(plan.is_measured && plan.chooses_by_first_token);
    ASSERT_EQ(plan.steps.size(), 3u);
    EXPECT_FALSE(plan.steps[0].verifies);
    for (const size_t later : {1u, 2u}) {
      EXPECT_TRUE(plan.steps[later].gate.is_open()) << "what is chosen is accepted";
      EXPECT_TRUE(plan.steps[later].verifies);
    }
    const AnswerSignals first{.tokens = 1, .first_logprob = -3 * RandomUniform(seed, 0)};
    const FeatureInputs inputs = {.answer = first, .prompt = TraitsOf(prompt)};
    size_t want = 0;
    while (want < 2 && !calibration.steps[want].gate->Accepts(inputs)) ++want;
    const Verdict verdict = plan.steps[0].gate.JudgeEarly(first, Duration(0));
    EXPECT_EQ(verdict == Verdict::kAccepted, want == 0) << "seed " << seed;
    EXPECT_NE(verdict, Verdict::kUndecided);
    if (want == 0) continue;
    EXPECT_EQ(NextStep(plan.steps, 0, first), want) << "seed " << seed;
  }
}

TEST(CalibratedPolicy, TheCacheSpeaksBeforeTheFirstTierIsAskedForAToken) {
  const std::vector<TierPrice> prices = {{100, 100}, {10, 10}, {1, 1}};  // base, small, nano
  const auto policy = MakeCalibratedPolicy(OfFirstToken(), kTiers, {.affinity_prices = prices});
  ASSERT_TRUE(policy.ok()) << policy.status();
  ClusterView view = Serving(kMeasured);
  for (TierView& tier : view.tiers) tier.ready.emplace_back();
  const TierPlan cached = PlanOf(**policy, Ask(std::string("x")), view, FixedMeter(1000, {{"small", 901}}));
  ASSERT_EQ(cached.steps.size(), 1u);
  EXPECT_EQ(cached.steps[0].tier, 1u);
  EXPECT_EQ(cached.reason, "cache affinity");
  EXPECT_FALSE(cached.is_measured);
  EXPECT_EQ(PlanOf(**policy, Ask(std::string("x")), view, FixedMeter(1000, {{"small", 899}})).steps.size(),
            3u);
}

TEST(CalibratedPolicy, ACascadeBeginsWhereTheCacheIs) {
  const std::vector<TierPrice> prices = {{100, 100}, {10, 10}, {1, 1}};  // base, small, nano
  const auto policy = MakeCalibratedPolicy(Example(CalibrationKind::kCascade), kTiers,
                                           {.verifies = true, .affinity_prices = prices});
  ASSERT_TRUE(policy.ok()) << policy.status();
  ClusterView view = Serving(kMeasured);
  for (TierView& tier : view.tiers) tier.ready.emplace_back();
  const struct {
    std::map<std::string, size_t> cached;
    std::vector<size_t> tiers;
  } cases[] = {{{}, {2, 1, 0}}, {{{"small", 901}}, {1, 0}}, {{{"small", 901}, {"base", 999}}, {0}}};
  for (const auto& c : cases) {
    const TierPlan plan = PlanOf(**policy, Ask(std::string("x")), view, FixedMeter(1000, c.cached));
    std::vector<size_t> tiers;
    for (const PlanStep& step : plan.steps) tiers.push_back(step.tier);
    EXPECT_EQ(tiers, c.tiers);
    EXPECT_FALSE(plan.steps.front().verifies);
    EXPECT_EQ(plan.is_measured, c.tiers.size() == 3);
    EXPECT_EQ(plan.reason, c.tiers.size() == 3 ? "cascade" : "cache affinity");
    for (const PlanStep& step : plan.steps) EXPECT_EQ(step.gate.is_open(), step.tier == 0);
  }
  FixedMeter meter(1000, {{"base", 1000}});
  meter.errors["nano"] = InvalidArgument("too long");
  EXPECT_EQ(PlanOf(**policy, Ask(std::string("x")), view, meter).steps.size(), 3u) << "others may answer";
}

TEST(CalibratedPolicy, ACascadesAnswersMayBeHeldForLess) {
  const auto policy =
      MakeCalibratedPolicy(Example(CalibrationKind::kCascade), kTiers,
                           {.holds = {{"nano", {.tokens = 3, .accept_above = 0.95, .reject_below = 0.2}}}});
  ASSERT_TRUE(policy.ok()) << policy.status();
  const std::pair<const char*, Verdict> cases[] = {
      {"1234", Verdict::kAccepted}, {"12ab", Verdict::kUndecided}, {"abcd", Verdict::kRejected}};
  for (const auto& [prompt, want] : cases) {  // probabilities 0.98, 0.5, 0.02
    const TierPlan plan = PlanOf(**policy, Ask(std::string(prompt)), Serving(kMeasured));
    EXPECT_EQ(plan.steps[0].gate.JudgeEarly({.tokens = 3}, Duration(0)), want) << prompt;
    EXPECT_EQ(plan.steps[0].gate.JudgeEarly({.tokens = 2}, Duration(0)), Verdict::kUndecided);
    EXPECT_EQ(plan.steps[1].gate.JudgeEarly({.tokens = 9}, Duration(0)), Verdict::kUndecided) << "has none";
  }
}

TEST(CalibratedPolicy, RefusesTiersAndFeaturesThatTheRouterDoesNotHave) {
  Calibration calibration = Example(CalibrationKind::kCascade);
  EXPECT_TRUE(MakeCalibratedPolicy(calibration, kTiers).ok());
  calibration.steps[1].gate->scorer.features[0].feature = *FindFeature("sum_logprob");
  const Status unknown = MakeCalibratedPolicy(calibration, kTiers).status();
  EXPECT_EQ(unknown.code(), StatusCode::kUnimplemented);
  EXPECT_THAT(Message(unknown), HasSubstr("sum_logprob"));
  calibration.steps[1].gate->scorer.features[0].feature = *FindFeature("min_margin");
  EXPECT_TRUE(MakeCalibratedPolicy(calibration, kTiers).ok());
  calibration.kind = CalibrationKind::kClassifier;
  EXPECT_THAT(Message(MakeCalibratedPolicy(calibration, kTiers).status()), HasSubstr("min_margin"));
  calibration.steps[1].gate->scorer.features[0].feature = *FindFeature("first_margin");
  EXPECT_TRUE(MakeCalibratedPolicy(calibration, kTiers).ok());
  const Status status = MakeCalibratedPolicy(calibration, {kTiers.data(), 2}).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("nano"));
}

}  // namespace
}  // namespace terrace
