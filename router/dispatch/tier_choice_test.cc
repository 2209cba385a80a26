// What a request says about who answers, and what the reply says of why.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "router/dispatch/testing_dispatcher.h"
#include "router/request/param.h"

namespace terrace {
namespace {

using ::testing::IsEmpty;

class TierChoiceTest : public DispatcherTest {
 protected:
  // A prompt of 4 tokens and an answer of at most 6 cost 10, 100 and 1,000 millionths.
  RequestFields Limited(const std::string& model, double max_usd) {
    RequestFields fields = Fields(model);
    fields.max_tokens = 6;
    fields.max_usd = max_usd;
    return fields;
  }
  void Use(CatalogPolicy policy) {
    dispatcher_ = nullptr;
    std::vector<CatalogPolicy> policies;
    policies.push_back(std::move(policy));
    catalog_ = *ModelCatalog::Make({{.name = "nano", .price = {1, 1}},
                                    {.name = "small", .price = {10, 10}},
                                    {.name = "base", .price = {20, 20}}},
                                   std::move(policies), "");
    dispatcher_ = MakeDispatcher({cluster_, *catalog_, balancer_, admission_, recorder_, clock_, 7});
  }
  void ExpectRefused(const std::string& reason, const std::string& param) {
    ASSERT_FALSE(End().ok());
    EXPECT_EQ(End().status().code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Reason(End().status()), reason);
    EXPECT_EQ(Param(End().status()), param);
    for (const size_t tier : {kNano, kSmall, kBase}) EXPECT_THAT(cluster_.replica(tier, 0).calls, IsEmpty());
  }
};

TEST_F(TierChoiceTest, AReplySaysWhyItsTierAnswered) {
  Generate(Fields("auto"));
  cluster_.call(kNano).Answer("no", kUnsure);
  cluster_.call(kSmall).Answer("yes", kConfident);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->reason, "cascade: accepted at step 2");
  EXPECT_EQ(sink_->choices[0].end->reason, End()->reason);
  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("small"));
  cluster_.call(kSmall).Answer("yes");
  EXPECT_EQ(End()->reason, "named");
}

TEST_F(TierChoiceTest, ARequestsTierAnswersWhateverThePolicySays) {
  RequestFields fields = Fields("auto");
  fields.tier = "small";
  Generate(fields);
  EXPECT_THAT(cluster_.replica(kNano, 0).calls, IsEmpty());
  cluster_.call(kSmall).Answer("hm", kUnsure);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "hm");
  EXPECT_EQ(End()->reason, "override");
  EXPECT_EQ(End()->attempts.size(), 1u);
}

TEST_F(TierChoiceTest, ATierThatIsNotTheModelsIsRefused) {
  RequestFields fields = Fields("small");
  fields.tier = "base";
  Generate(fields);
  ExpectRefused("invalid_value", "tier");
}

TEST_F(TierChoiceTest, ACascadeStopsWhereTheRequestsLimitDoes) {
  Generate(Limited("auto", 200e-6));
  cluster_.call(kNano).Answer("no", kUnsure);
  cluster_.call(kSmall).Answer("hm", kUnsure);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "hm") << "there is nobody to ask after it";
  EXPECT_EQ(End()->reason, "cascade, within the request's limit: accepted at step 2");
  EXPECT_LE(End()->price_usd, 200e-6);
}

TEST_F(TierChoiceTest, ALimitThatPaysForNothingIsRefused) {
  Generate(Limited("auto", 9e-6));
  ExpectRefused("budget_too_small", "max_usd");
}

TEST_F(TierChoiceTest, WithoutMaxTokensAnAnswerMayFillTheContext) {
  RequestFields fields = Fields("nano");  // 64 tokens of context: 64 millionths
  fields.max_usd = 63e-6;
  Generate(fields);
  ExpectRefused("budget_too_small", "max_usd");
  sink_ = std::make_shared<FakeSink>();
  fields.max_usd = 65e-6;
  Generate(fields);
  cluster_.call(kNano).Answer("yes");
  EXPECT_TRUE(End().ok()) << End().status();
}

TEST_F(TierChoiceTest, ALimitOfThePriceIsOneOfTheAnswersLength) {
  RequestFields fields = Fields("nano");
  Generate(fields);
  EXPECT_EQ(cluster_.call(kNano).spec.max_tokens, 0u) << "what its context holds";
  cluster_.call(kNano).Answer("yes");
  sink_ = std::make_shared<FakeSink>();
  fields.max_usd = 1;
  Generate(fields);
  EXPECT_EQ(cluster_.call(kNano).spec.max_tokens, 60u) << "whatever its context is";
  cluster_.call(kNano).Answer("yes");
  EXPECT_TRUE(End().ok()) << End().status();
}

TEST_F(TierChoiceTest, ATenantOverItsLimitCostsNoPlan) {
  RequestFields fields = Limited("auto", 1e-9);
  fields.tenant = std::make_shared<Tenant>(Tenant{.name = "a", .requests_per_minute = 1});
  Generate(fields);
  ExpectRefused("budget_too_small", "max_usd");
  sink_ = std::make_shared<FakeSink>();
  RequestFields first = Fields("nano");
  first.tenant = fields.tenant;
  Generate(first);
  cluster_.call(kNano).Answer("yes");
  ASSERT_TRUE(End().ok()) << End().status();
  sink_ = std::make_shared<FakeSink>();
  Generate(fields);
  EXPECT_EQ(Reason(End().status()), "rate_limit_exceeded");
  book_.Close();
  sink_ = std::make_shared<FakeSink>();
  Generate(fields);
  EXPECT_EQ(Reason(End().status()), "draining");
}

TEST_F(TierChoiceTest, ATierThatTheTenantMayNotUseCannotBeNamed) {
  RequestFields fields = Fields("auto");
  fields.tenant = std::make_shared<Tenant>(Tenant{.name = "a", .models = {"auto"}});
  fields.tier = "base";
  Generate(fields);
  EXPECT_EQ(End().status().code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(Reason(End().status()), "model_not_allowed");
}

TEST_F(TierChoiceTest, ABudgetPassesOverATierWhoseContextCannotHoldThePrompt) {
  Use({.name = "auto", .budget = BudgetOptions{.candidates = {{0, 0.5}, {2, 0.9}}}});
  cluster_.tier(kBase).context_length = 8;
  RequestFields fields = Fields("auto", std::string(4, 'x'));
  fields.max_tokens = 6;
  Generate(fields);
  cluster_.call(kNano).Answer("yes");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->tier, "nano");
  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("auto", std::string(64, 'x')));
  EXPECT_EQ(Reason(End().status()), "context_length_exceeded");
}

TEST_F(TierChoiceTest, WhatOnlyATierWithoutAWorkerCouldPayForIsAnOutage) {
  Use({.name = "auto", .budget = BudgetOptions{.candidates = {{0, 0.5}, {2, 0.9}}}});
  for (ReplicaView& replica : cluster_.tier(kNano).replicas) replica.state = ReplicaState::kSilent;
  Generate(Limited("auto", 10e-6));
  EXPECT_EQ(End().status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(End().status()), "no_capacity");
}

TEST_F(TierChoiceTest, ABudgetCountsThePromptsTokens) {
  Use({.name = "auto",
       .budget = BudgetOptions{
           .candidates = {{0, 0.5}, {1, 0.7}}, .max_usd = 200e-6, .expected_answer_tokens = 10}});
  Generate(Fields("auto", std::string(10, 'x')));  // 20 tokens at 10
  cluster_.call(kSmall).Answer("yes");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->reason, "budget");
  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("auto", std::string(11, 'x')));
  cluster_.call(kNano).Answer("yes");
  EXPECT_EQ(End()->tier, "nano");
}

class AnswerTimeTest : public TierChoiceTest {
 protected:
  AnswerTimeTest() {
    Use({.name = "auto",
         .budget = BudgetOptions{
             .candidates = {{0, 0.5}, {1, 0.7}}, .max_seconds = 10, .expected_answer_tokens = 41}});
  }
  // An answer of `tier` whose tokens come so far apart, behind the first.
  void Answer(const std::string& tier, size_t number, Duration apart, int tokens = 30) {
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields(tier));
    FakeCall& call = cluster_.call(number);
    for (int i = 0; i < tokens; ++i) {
      if (i > 0) clock_.Advance(apart);
      call.SendText("x");
    }
    call.Answer("");
    ASSERT_TRUE(End().ok()) << End().status();
  }
  std::string TierOf(RequestFields fields) {
    sink_ = std::make_shared<FakeSink>();
    Generate(std::move(fields));
    for (const size_t tier : {kNano, kSmall}) {
      if (!cluster_.replica(tier, 0).calls.empty() && !cluster_.call(tier).is_done)
        cluster_.call(tier).Answer("yes");
    }
    return End().ok() ? End()->tier : Reason(End().status());
  }
};

TEST_F(AnswerTimeTest, ABudgetKnowsHowFastTokensHaveComeLately) {
  EXPECT_EQ(TierOf(Fields("auto")), "small") << "nothing is known";
  clock_.Advance(kSpeedRemembered);
  Answer("small", kSmall, std::chrono::milliseconds(300));  // 40 of them take 12 seconds
  EXPECT_EQ(TierOf(Fields("auto")), "nano");
  EXPECT_EQ(TierOf(Fields("small")), "small") << "a tier that is named has no bound";
  clock_.Advance(kSpeedRemembered);
  EXPECT_EQ(TierOf(Fields("auto")), "small") << "it may be faster now";
}

TEST_F(AnswerTimeTest, ARequestMayBoundTheTimeItself) {
  Answer("small", kSmall, std::chrono::milliseconds(100));
  EXPECT_EQ(TierOf(Fields("auto")), "small");
  RequestFields fields = Fields("auto");
  fields.max_seconds = 3.5;
  EXPECT_EQ(TierOf(fields), "nano");
  fields.max_tokens = 30;
  EXPECT_EQ(TierOf(fields), "small") << "a shorter answer takes less";
  RequestFields named = Fields("small");
  named.max_seconds = 3.5;
  named.max_tokens = 50;
  EXPECT_EQ(TierOf(named), "budget_too_small");
  EXPECT_EQ(Param(End().status()), "max_seconds");
}

TEST_F(AnswerTimeTest, WhatAClientDoesNotReadSaysNothingOfItsTier) {
  Generate(Fields("small"));
  FakeCall& call = cluster_.call(kSmall);
  call.SendText("x");
  for (int i = 0; i < 20; ++i) {
    sink_->full = true;
    EXPECT_TRUE(call.events->is_full());
    sink_->full = false;
    clock_.Advance(std::chrono::seconds(1));
    call.SendText("x");
  }
  call.Answer("");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_NEAR(admission_.seconds_per_token(kSmall).value_or(-1), 0, 1e-9) << "but for the end token, at once";
}

TEST_F(TierChoiceTest, AClassifierYieldsToTheCacheOfALargerTier) {
  const CalibratedGate always = {.scorer = {.bias = 9}, .threshold = 0.5};
  const Calibration calibration = {
      .kind = CalibrationKind::kClassifier,
      .policy = "auto",
      .steps = {{.tier = "nano", .model_digest = "nano model", .text_digest = "bytes", .gate = always},
                {.tier = "base", .model_digest = "base model", .text_digest = "bytes"}}};
  Use({.name = "auto", .calibration = calibration, .cache_affinity = true});
  const std::string prompt(33, 'x');
  Generate(Fields("auto", prompt));
  cluster_.call(kNano).Answer("yes");
  EXPECT_EQ(End()->reason, "classifier");
  cluster_.Cache(kBase, 0, ByteTokenizer().Encode(std::string_view(prompt)));  // two blocks of 16
  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("auto", prompt));  // 1 token at 20, or 33 at 1
  cluster_.call(kBase).Answer("yes");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->reason, "cache affinity");
}

}  // namespace
}  // namespace terrace
