// What one tier hands to the next, and when: drafts, early verdicts, signals.
#include <cmath>
#include <string>
#include <thread>

#include "router/dispatch/draft.h"
#include "router/dispatch/testing_dispatcher.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr TokenId kEnd = ByteTokenizer::kEnd;

// As ByteTokenizer, but token kShift + i is byte i, and there is no end token.
class ShiftedTokenizer : public Tokenizer {
 public:
  static constexpr TokenId kShift = 1000;

  std::vector<TokenId> Encode(std::string_view text) const override {
    std::vector<TokenId> out;
    for (const char c : text) out.push_back(kShift + static_cast<unsigned char>(c));
    return out;
  }
  std::vector<TokenId> Encode(const MarkedText& text) const override { return Encode(text.text); }
  std::string_view TokenBytes(TokenId token, bool with_control) const override {
    return token < kShift ? std::string_view() : bytes_.TokenBytes(token - kShift, with_control);
  }
  bool IsControl(TokenId token) const override { return token < kShift; }
  size_t vocab_size() const override { return kShift + 256; }
  const SpecialTokens& special() const override { return special_; }
  std::string Serialize() const override { return "shifted bytes"; }

 private:
  const ByteTokenizer bytes_;
  const SpecialTokens special_ = {};
};

class EscalationTest : public DispatcherTest {
 protected:
  // Policy "auto" has these steps from now on.
  void Use(std::vector<PlanStep> steps) {
    dispatcher_ = nullptr;
    catalog_ = *ModelCatalog::Make({{.name = "nano", .price = {1, 1}},
                                    {.name = "small", .price = {10, 10}},
                                    {.name = "base", .price = {100, 100}}},
                                   {{.name = "auto", .steps = std::move(steps)}}, "");
    dispatcher_ = MakeDispatcher({cluster_, *catalog_, balancer_, admission_, recorder_, clock_, 7});
  }
  void UseShifted(size_t tier) {
    auto text = std::make_shared<TextAssets>();
    text->tokenizer = std::make_shared<ShiftedTokenizer>();
    cluster_.tier(tier).text = text;
    cluster_.tier(tier).text_digest = "shifted bytes";
    cluster_.tier(tier).vocab_size = ShiftedTokenizer::kShift + 256;
  }
  double DraftTokens(const std::string& tier, const std::string& result) const {
    return Metric("terrace_tier_draft_tokens_total{result=\"" + result + "\",tier=\"" + tier + "\"}");
  }
};

TEST_F(EscalationTest, TheNextTierVerifiesTheAnswerThatWasNotAccepted) {
  Generate(Fields("auto"));
  EXPECT_THAT(cluster_.call(kNano).spec.draft, IsEmpty());
  cluster_.call(kNano).Answer("no", kUnsure);
  EXPECT_THAT(cluster_.call(kSmall).spec.draft, ElementsAre('n', 'o', kEnd));
  EXPECT_THAT(cluster_.call(kSmall).spec.resume, IsEmpty());
  cluster_.call(kSmall).Answer("na", kUnsure);
  EXPECT_THAT(cluster_.call(kBase).spec.draft, ElementsAre('n', 'a', kEnd));
  cluster_.call(kBase).Answer("na");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "na");
  ASSERT_EQ(End()->attempts.size(), 3u);
  EXPECT_EQ(End()->attempts[0].draft_tokens, 0u);
  EXPECT_EQ(End()->attempts[1].draft_tokens, 3u);
  EXPECT_EQ(End()->attempts[1].accepted_draft_tokens, 1u);
  EXPECT_EQ(End()->attempts[2].accepted_draft_tokens, 3u);
  EXPECT_EQ(DraftTokens("small", "accepted"), 1);
  EXPECT_EQ(DraftTokens("small", "rejected"), 2);
  EXPECT_EQ(DraftTokens("base", "accepted"), 3);
  EXPECT_EQ(DraftTokens("base", "rejected"), 0);
}

TEST_F(EscalationTest, ACascadeMayDoWithout) {
  Use({{0, Gate(kThreshold)}, {2}});
  Generate(Fields("auto"));
  cluster_.call(kNano).Answer("no", kUnsure);
  EXPECT_THAT(cluster_.call(kBase).spec.draft, IsEmpty());
  cluster_.call(kBase).Answer("yes");
  EXPECT_TRUE(End().ok());
}

TEST_F(EscalationTest, ATierWithAnotherTokenizerGetsTheTextInItsOwnTokens) {
  UseShifted(kBase);
  Generate(Fields("auto"));
  cluster_.call(kNano).Answer("no", kUnsure);
  cluster_.call(kSmall).Answer("so", kUnsure);
  EXPECT_THAT(cluster_.call(kBase).spec.draft,
              ElementsAre(ShiftedTokenizer::kShift + 's', ShiftedTokenizer::kShift + 'o'));
  cluster_.call(kBase).SendToken(ShiftedTokenizer::kShift + 's');
  cluster_.call(kBase).Finish(AnswerEnd::kLength);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "s");
  EXPECT_EQ(End()->attempts[2].accepted_draft_tokens, 1u);
}

TEST_F(EscalationTest, ADraftEndsBeforeATokenThatTheNextModelHasNot) {
  TierView tier = cluster_.tier(kSmall);
  const Draft draft = {{'n', 'o', kEnd, 'x'}, tier.text, tier.text_digest};
  EXPECT_THAT(EncodeDraft(draft, tier), ElementsAre('n', 'o', kEnd, 'x'));
  tier.vocab_size = 256;
  EXPECT_THAT(EncodeDraft(draft, tier), ElementsAre('n', 'o'));
  EXPECT_THAT(EncodeDraft({}, tier), IsEmpty());
}

TEST_F(EscalationTest, WhatATierSaidBeforeItWasLostIsADraftToo) {
  const Status stopping = WithReason(Unavailable("stopping"), "draining");
  Generate(Fields("auto"));
  cluster_.call(kNano, 0).SendText("ab");
  cluster_.tier(kNano).replicas[1].state = ReplicaState::kSilent;
  cluster_.call(kNano, 0).Fail(stopping);
  EXPECT_THAT(cluster_.call(kSmall).spec.draft, ElementsAre('a', 'b'));
  cluster_.call(kSmall).Fail(stopping);  // it says nothing
  EXPECT_THAT(cluster_.call(kBase).spec.draft, ElementsAre('a', 'b'));
  cluster_.call(kBase).Answer("abc");
  EXPECT_TRUE(End().ok()) << End().status();
}

TEST_F(EscalationTest, ARequestsLimitOfDraftsGoesWithItToEveryTierAndReplica) {
  Generate(Fields("base"));
  EXPECT_EQ(cluster_.call(kBase).spec.speculation_max_tokens, std::nullopt);
  cluster_.call(kBase).Answer("as it is configured");
  RequestFields fields = Fields("auto");
  fields.speculation_max_tokens = 0;
  sink_ = std::make_shared<FakeSink>();
  Generate(fields);
  EXPECT_EQ(cluster_.call(kNano, 0).spec.speculation_max_tokens, 0u);
  cluster_.call(kNano, 0).SendText("n", kUnsure);
  cluster_.call(kNano, 0).Fail(WithReason(Unavailable("stopping"), "draining"));
  EXPECT_THAT(cluster_.call(kNano, 1).spec.resume, ElementsAre('n'));
  EXPECT_EQ(cluster_.call(kNano, 1).spec.speculation_max_tokens, 0u);
  cluster_.call(kNano, 1).Answer("o", kUnsure);
  EXPECT_THAT(cluster_.call(kSmall).spec.draft, ElementsAre('n', 'o', kEnd)) << "it is not the worker's own";
  EXPECT_EQ(cluster_.call(kSmall).spec.speculation_max_tokens, 0u);
  cluster_.call(kSmall).Answer("yes", kConfident);
  EXPECT_TRUE(End().ok()) << End().status();
}

TEST_F(EscalationTest, AVerifyPolicysAnswerIsTheSecondTiersAlone) {
  Use({{0, Gate::Closed()}, {2, {}, true}});
  Generate(Fields("auto"));
  cluster_.call(kNano).Answer("yes", 0);
  EXPECT_EQ(sink_->text, "") << "however sure the first one is";
  EXPECT_THAT(cluster_.call(kBase).spec.draft, ElementsAre('y', 'e', 's', kEnd));
  cluster_.call(kBase).SendText("yes");
  EXPECT_EQ(sink_->text, "yes");
  cluster_.call(kBase).Answer("!", kUnsure);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->tier, "base");
  EXPECT_DOUBLE_EQ(End()->price_usd, ((4 + 4) * 1 + (4 + 5) * 100) / 1e6) << "both are paid";
  EXPECT_EQ(DraftTokens("base", "accepted"), 3);
}

TEST_F(EscalationTest, AnAnswerThatGoesOnElsewhereHasTheRestOfItsDraft) {
  const struct {
    const char* said;
    std::vector<TokenId> draft;
    uint32_t accepted;
  } cases[] = {{"", {'a', 'b', 'c', kEnd}, 4}, {"ab", {'c', kEnd}, 2}, {"ax", {}, 0}};
  Use({{0, Gate::Closed()}, {2, {}, true}});
  for (const auto& c : cases) {
    SCOPED_TRACE(c.said);
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields("auto"));
    cluster_.call(kNano).Answer("abc");
    cluster_.call(kBase, 0).SendText(c.said);
    cluster_.call(kBase, 0).Fail(WithReason(Unavailable("stopping"), "draining"));
    FakeCall& second = cluster_.call(kBase, 1);
    EXPECT_EQ(second.spec.resume, ByteTokenizer().Encode(std::string_view(c.said)));
    EXPECT_EQ(second.spec.draft, c.draft);
    second.Answer(std::string_view("abc").substr(std::string_view(c.said).size()));
    ASSERT_TRUE(End().ok()) << End().status();
    EXPECT_EQ(End()->attempts.back().draft_tokens, c.draft.size());
    EXPECT_EQ(End()->attempts.back().accepted_draft_tokens, c.accepted);
  }
}

constexpr double kAcceptAbove = -0.5, kRejectBelow = -1.5;
Gate Holding(const HoldBudget& budget) {
  HoldBudget hold = budget;
  hold.accept_above = kAcceptAbove;
  hold.reject_below = kRejectBelow;
  return Gate(-0.2, hold);
}

TEST_F(EscalationTest, ASureAnswerGoesOutFromItsHoldBudgetOnAndIsTheAnswerWhateverFollows) {
  Use({{0, Holding({.tokens = 3})}, {2, {}, true}});
  Generate(Fields("auto"));
  FakeCall& call = cluster_.call(kNano);
  clock_.Advance(std::chrono::seconds(1));
  call.SendText("ab", kConfident);
  EXPECT_EQ(sink_->text, "");
  call.SendText("c", kConfident);
  EXPECT_EQ(sink_->text, "abc");
  call.SendText("d", -99);
  EXPECT_EQ(sink_->text, "abcd");
  EXPECT_FALSE(call.is_cancelled);
  clock_.Advance(std::chrono::seconds(1));
  call.Finish();
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->tier, "nano");
  EXPECT_TRUE(End()->attempts[0].accepted);
  EXPECT_EQ(End()->attempts[0].threshold, kAcceptAbove) << "by which it was accepted";
  EXPECT_FLOAT_EQ(static_cast<float>(End()->attempts[0].score.value_or(-9)), kConfident) << "as it was then";
  EXPECT_EQ(End()->attempts[0].min_logprob, -99) << "of the whole";
  EXPECT_DOUBLE_EQ(End()->time_to_first_token_seconds, 1);
}

TEST_F(EscalationTest, AnUnsureAnswerIsEndedFromItsHoldBudgetOnAndIsADraft) {
  Use({{0, Holding({.tokens = 3})}, {2, {}, true}});
  Generate(Fields("auto"));
  FakeCall& call = cluster_.call(kNano);
  call.SendText("ab", kUnsure);
  EXPECT_FALSE(call.is_cancelled);
  call.SendText("cd", kUnsure);
  EXPECT_TRUE(call.is_cancelled);
  call.Fail(Cancelled("by us"));
  EXPECT_THAT(cluster_.call(kBase).spec.draft, ElementsAre('a', 'b', 'c'));
  cluster_.call(kBase).Answer("abe");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "abe");
  EXPECT_EQ(End()->attempts[0].usage, (TokenUsage{4, 0, 3})) << "up to the verdict";
  EXPECT_EQ(End()->attempts[0].threshold, kRejectBelow);
  EXPECT_EQ(Metric("terrace_tier_attempts_total{result=\"escalated\",tier=\"nano\"}"), 1);
}

TEST_F(EscalationTest, BetweenTheBoundsAnAnswerIsJudgedAtItsEnd) {
  Use({{0, Holding({.tokens = 1})}, {2, {}, true}});
  Generate(Fields("auto"));
  cluster_.call(kNano).Answer("hm", -1);
  EXPECT_EQ(sink_->text, "");
  cluster_.call(kBase).Answer("yes");
  EXPECT_EQ(End()->tier, "base");
  EXPECT_EQ(End()->attempts[0].threshold, -0.2);
  EXPECT_EQ(End()->attempts[0].score, -1);
  EXPECT_EQ(End()->attempts[1].score, std::nullopt) << "the last one's answer is not judged";
}

TEST_F(EscalationTest, AHoldBudgetMayBeOfTime) {
  Use({{0, Holding({.time = std::chrono::seconds(2)})}, {2, {}, true}});
  Generate(Fields("auto"));
  clock_.Advance(std::chrono::seconds(5));  // before the first token it does not run
  FakeCall& call = cluster_.call(kNano);
  call.SendText("a", kConfident);
  clock_.Advance(std::chrono::seconds(2) - Duration(1));
  call.SendText("b", kConfident);
  EXPECT_EQ(sink_->text, "");
  clock_.Advance(Duration(1));
  call.SendText("c", kConfident);
  EXPECT_EQ(sink_->text, "abc");
  call.Answer("d", kConfident);
  EXPECT_EQ(End()->tier, "nano");
}

TEST_F(EscalationTest, ASureAnswerGoesOutWhenItsTimeIsOverThoughItsNextTokenIsLate) {
  Use({{0, Holding({.time = std::chrono::seconds(2)})}, {2, {}, true}});
  Generate(Fields("auto"));
  FakeCall& call = cluster_.call(kNano);
  clock_.Advance(std::chrono::seconds(5));
  dispatcher_->Housekeep();  // before the first token there is nothing to judge
  call.SendText("ab", kConfident);
  clock_.Advance(std::chrono::seconds(2) - Duration(1));
  dispatcher_->Housekeep();
  EXPECT_EQ(sink_->text, "");
  clock_.Advance(Duration(1));
  dispatcher_->Housekeep();
  EXPECT_EQ(sink_->text, "ab");
  dispatcher_->Housekeep();
  call.SendText("c", -99);
  EXPECT_EQ(sink_->text, "abc") << "it is the answer whatever follows";
  call.Finish();
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->tier, "nano");
  EXPECT_DOUBLE_EQ(End()->time_to_first_token_seconds, 7);
}

TEST_F(EscalationTest, AnUnsureAnswerIsEndedWhenItsTimeIsOverThoughItsNextTokenIsLate) {
  Use({{0, Holding({.time = std::chrono::seconds(2)})}, {2, {}, true}});
  Generate(Fields("auto"));
  FakeCall& call = cluster_.call(kNano);
  call.SendText("ab", kUnsure);
  clock_.Advance(std::chrono::seconds(2));
  EXPECT_FALSE(call.is_cancelled);
  dispatcher_->Housekeep();
  EXPECT_TRUE(call.is_cancelled);
  call.Fail(Cancelled("by us"));
  EXPECT_THAT(cluster_.call(kBase).spec.draft, ElementsAre('a', 'b'));
  cluster_.call(kBase).Answer("abe");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "abe");
}

TEST_F(EscalationTest, WhatItsTimeDoesNotDecideIsJudgedWithTheNextToken) {
  Use({{0, Holding({.time = std::chrono::seconds(2)})}, {2, {}, true}});
  Generate(Fields("auto"));
  FakeCall& call = cluster_.call(kNano);
  call.SendText("a", -0.9f);
  clock_.Advance(std::chrono::seconds(3));
  dispatcher_->Housekeep();
  EXPECT_EQ(sink_->text, "");
  EXPECT_FALSE(call.is_cancelled);
  call.SendText("b", -0.05f);
  EXPECT_EQ(sink_->text, "ab");
  call.Finish();
  EXPECT_EQ(End()->tier, "nano");
}

TEST_F(EscalationTest, AHoldsTimeRunsOnWhereAnAnswerGoesOnAtAnotherReplica) {
  Use({{0, Holding({.time = std::chrono::seconds(2)})}, {2, {}, true}});
  Generate(Fields("auto"));
  cluster_.call(kNano, 0).SendText("ab", kConfident);
  clock_.Advance(std::chrono::seconds(1));
  cluster_.call(kNano, 0).Fail(Unavailable("gone"));
  ASSERT_EQ(cluster_.replica(kNano, 1).calls.size(), 1u);
  dispatcher_->Housekeep();
  EXPECT_EQ(sink_->text, "");
  clock_.Advance(std::chrono::seconds(1));
  dispatcher_->Housekeep();
  EXPECT_EQ(sink_->text, "ab") << "before the second one has said a word";
  cluster_.call(kNano, 1).Answer("c");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "abc");
}

TEST_F(EscalationTest, AnAnswerThatIsOverIsJudgedByItsEndAlone) {
  Use({{0, Holding({.time = std::chrono::seconds(2)})}, {2, {}, true}});
  RequestFields fields = Fields("auto");
  fields.stop = {"!"};
  Generate(std::move(fields));
  cluster_.call(kNano).SendText("ab!", -0.3f);  // enough to go out early, not at the end
  EXPECT_TRUE(cluster_.call(kNano).is_cancelled);
  clock_.Advance(std::chrono::seconds(3));
  dispatcher_->Housekeep();
  EXPECT_EQ(sink_->text, "");
  cluster_.call(kNano).Fail(Cancelled("by us"));
  dispatcher_->Housekeep();
  cluster_.call(kBase).Answer("yes");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "yes");
}

TEST_F(EscalationTest, TheEndOfAHoldsTimeDoesNothingForAClientThatIsGone) {
  Use({{0, Holding({.time = std::chrono::seconds(2)})}, {2, {}, true}});
  Generate(Fields("auto"));
  cluster_.call(kNano).SendText("ab", kConfident);
  sink_->closed = true;
  clock_.Advance(std::chrono::seconds(2));
  dispatcher_->Housekeep();
  EXPECT_EQ(sink_->text, "");
  EXPECT_TRUE(cluster_.call(kNano).is_cancelled);
  cluster_.call(kNano).Fail(Cancelled("by us"));
  EXPECT_EQ(Reason(End().status()), "client_closed");
  clock_.Advance(std::chrono::seconds(2));
  dispatcher_->Housekeep();  // nor later
}

TEST_F(EscalationTest, TokensAndTheEndOfAHoldsTimeMayComeAtOnce) {
  Use({{0, Holding({.time = std::chrono::milliseconds(1)})}, {2, {}, true}});
  for (int i = 0; i < 200; ++i) {
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields("auto"));
    std::thread worker([call = cluster_.replica(kNano, 0).calls.back()] { call->Answer("abcdefgh", -0.3f); });
    clock_.Advance(std::chrono::milliseconds(1));
    dispatcher_->Housekeep();
    worker.join();
    if (!sink_->end.has_value()) cluster_.call(kBase).Answer("abcdefgh");
    ASSERT_TRUE(End().ok()) << End().status();
    EXPECT_EQ(sink_->text, "abcdefgh") << i << ": each token once, whoever let it out";
  }
}

TEST_F(EscalationTest, AnAnswerThatWentOutEarlyIsNoOtherTiersThoughItsWorkerIsLost) {
  Use({{0, Holding({.tokens = 1})}, {2, {}, true}});
  Generate(Fields("auto"));
  cluster_.call(kNano, 0).SendText("ab", kConfident);
  EXPECT_EQ(sink_->text, "ab");
  cluster_.tier(kNano).replicas[1].state = ReplicaState::kSilent;
  cluster_.call(kNano, 0).Fail(Unavailable("gone"));
  EXPECT_TRUE(cluster_.replica(kBase, 0).calls.empty());
  cluster_.tier(kNano).replicas[1].state = ReplicaState::kReady;
  dispatcher_->Housekeep();
  cluster_.call(kNano, 1).Answer("c", kUnsure);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "abc");
  EXPECT_EQ(End()->tier, "nano");
}

TEST_F(EscalationTest, AVerdictHoldsAtTheReplicaThatGoesOn) {
  Use({{0, Holding({.tokens = 4})}, {2, {}, true}});
  Generate(Fields("auto"));
  cluster_.call(kNano, 0).SendText("ab", kConfident);
  cluster_.call(kNano, 0).Fail(Unavailable("gone"));
  cluster_.call(kNano, 1).SendText("c", kConfident);
  EXPECT_EQ(sink_->text, "");
  cluster_.call(kNano, 1).SendText("d", kConfident);
  EXPECT_EQ(sink_->text, "abcd") << "its budget counts all tokens";
  cluster_.call(kNano, 1).Answer("");
  EXPECT_EQ(End()->tier, "nano");
}

TEST_F(EscalationTest, SignalsAreAskedForWhereAGateLooksAtThemAndDecideThere) {
  GateScorer scorer;
  scorer.weights[GateScorer::kOfLogprobs + 1] = 1;  // of the least margin
  scorer.bias = -2;
  for (const float margin : {3.0f, 1.0f}) {
    Use({{0, Gate(scorer, /*min_probability=*/0.5)}, {2, {}, true}});
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields("auto"));
    FakeCall& call = cluster_.call(kNano);
    EXPECT_TRUE(call.spec.signals);
    call.Send({.token = 'a', .logprob = -9, .margin = 5, .entropy = 0.5f});
    call.Send({.token = kEnd, .logprob = -9, .margin = margin});
    call.Finish();
    if (margin < 2) {
      EXPECT_FALSE(cluster_.call(kBase).spec.signals);
      cluster_.call(kBase).Answer("b");
    }
    EXPECT_EQ(End()->tier, margin < 2 ? "base" : "nano");
    EXPECT_EQ(End()->attempts[0].threshold, 0.5);
  }
}

// Of nano, small and base: sure first tokens stay, middling ones are small's.
class FirstTokenTest : public EscalationTest {
 protected:
  static constexpr double kStays = 0.6, kIsSmalls = 0.4;  // log-probabilities above -0.405 and -1.216

  FirstTokenTest() {
    GateScorer scorer;
    scorer.weights[2] = 1;         // the odds that it is good are
    scorer.bias = std::log(2.25);  // so many times the first token's probability
    UsePlan(scorer, scorer);
  }
  void UsePlan(const GateScorer& of_nano, const GateScorer& of_small) {
    dispatcher_ = nullptr;
    catalog_ = *ModelCatalog::Make({{.name = "nano", .price = {1, 1}},
                                    {.name = "small", .price = {10, 10}},
                                    {.name = "base", .price = {100, 100}}},
                                   {{.name = "auto", .calibration = Calibrated(of_nano, of_small)}}, "");
    dispatcher_ = MakeDispatcher({cluster_, *catalog_, balancer_, admission_, recorder_, clock_, 7});
  }
  static Calibration Calibrated(const GateScorer& of_nano, const GateScorer& of_small) {
    const auto gate = [](const GateScorer& scorer, double threshold) {
      return CalibratedGate{
          .scorer = {.features = {{.feature = *FindFeature("first_logprob"), .weight = scorer.weights[2]},
                                  {.feature = *FindFeature("first_margin"), .weight = scorer.weights[6]}},
                     .bias = scorer.bias},
          .threshold = threshold};
    };
    const std::string text = "bytes";
    return {.kind = CalibrationKind::kClassifier,
            .policy = "auto",
            .steps = {{.tier = "nano",
                       .model_digest = "nano model",
                       .text_digest = text,
                       .gate = gate(of_nano, kStays)},
                      {.tier = "small",
                       .model_digest = "small model",
                       .text_digest = text,
                       .gate = gate(of_small, kIsSmalls)},
                      {.tier = "base", .model_digest = "base model", .text_digest = text}}};
  }
};

TEST_F(FirstTokenTest, ASureBeginningGoesOnAtItsTierWithoutARestart) {
  Generate(Fields("auto"));
  FakeCall& call = cluster_.call(kNano);
  clock_.Advance(std::chrono::seconds(1));
  call.SendText("a", -0.1f);
  EXPECT_EQ(sink_->text, "a") << "at once";
  call.SendText("b", -99);
  EXPECT_EQ(sink_->text, "ab") << "whatever follows";
  EXPECT_FALSE(call.is_cancelled);
  call.Answer("");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->tier, "nano");
  EXPECT_EQ(End()->reason, "classifier: first token");
  EXPECT_DOUBLE_EQ(End()->time_to_first_token_seconds, 1);
  ASSERT_EQ(End()->attempts.size(), 1u);
  EXPECT_TRUE(End()->attempts[0].accepted);
  EXPECT_EQ(End()->attempts[0].threshold, kStays);
  const double odds = 2.25 * std::exp(double{-0.1f});
  EXPECT_NEAR(End()->attempts[0].score.value_or(-1), odds / (1 + odds), 1e-9) << "of the first token";
  EXPECT_FLOAT_EQ(static_cast<float>(End()->attempts[0].min_logprob), -99);
  EXPECT_EQ(cluster_.replica(kNano, 0).calls.size(), 1u);
}

TEST_F(FirstTokenTest, OthersAreAskedDirectlyWithTheTokenAsADraftAndOneTokenIsPaid) {
  const struct {
    float logprob;
    size_t tier;
    const char* name;
    double price;
  } cases[] = {{-0.6f, kSmall, "small", 10}, {-3, kBase, "base", 100}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields("auto"));
    FakeCall& first = *cluster_.replica(kNano, 0).calls.back();
    first.SendText("a", c.logprob);
    EXPECT_TRUE(first.is_cancelled);
    EXPECT_EQ(sink_->text, "");
    first.Fail(Cancelled("by us"));
    FakeCall& call = *cluster_.replica(c.tier, 0).calls.back();
    EXPECT_THAT(call.spec.draft, ElementsAre('a'));
    call.SendText("y", -99);
    EXPECT_EQ(sink_->text, "y") << "its answer is not judged";
    call.Answer("es", -99);
    ASSERT_TRUE(End().ok()) << End().status();
    EXPECT_EQ(End()->tier, c.name);
    EXPECT_EQ(End()->reason, "classifier: first token");
    ASSERT_EQ(End()->attempts.size(), 2u);
    EXPECT_EQ(End()->attempts[0].usage, (TokenUsage{4, 0, 1}));
    EXPECT_FALSE(End()->attempts[0].accepted);
    EXPECT_LE(End()->attempts[0].score.value_or(1), kStays);
    EXPECT_DOUBLE_EQ(End()->price_usd, ((4 + 1) * 1 + (4 + 4) * c.price) / 1e6) << "both are paid";
    const AnswerAttempt& last = End()->attempts[1];
    EXPECT_EQ(last.threshold.has_value(), c.tier == kSmall);
    if (c.tier == kSmall) {
      EXPECT_GT(last.score.value_or(0), kIsSmalls) << "why it was chosen";
    }
    EXPECT_EQ(Metric(Concat("terrace_escalations_total{from=\"nano\",to=\"", c.name, "\"}")), 1);
  }
  EXPECT_EQ(cluster_.replica(kSmall, 0).calls.size(), 1u) << "it is left out where base was chosen";
}

TEST_F(FirstTokenTest, AFirstTokenThatEndsTheAnswerIsJudgedToo) {
  for (const float logprob : {-0.1f, -3.0f}) {
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields("auto"));
    FakeCall& first = *cluster_.replica(kNano, 0).calls.back();
    first.SendToken(kEnd, logprob);
    first.Finish();
    if (logprob < -1) cluster_.call(kBase).Answer("yes");
    ASSERT_TRUE(End().ok()) << End().status();
    EXPECT_EQ(End()->tier, logprob < -1 ? "base" : "nano");
  }
}

TEST_F(FirstTokenTest, WithoutAFirstTokenTheLastTierAnswers) {
  for (ReplicaView& replica : cluster_.tier(kNano).replicas) replica.state = ReplicaState::kSilent;
  Generate(Fields("auto"));
  EXPECT_THAT(cluster_.replica(kSmall, 0).calls, IsEmpty());
  cluster_.call(kBase).Answer("yes");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->tier, "base");
  EXPECT_EQ(End()->reason, "fallback: no first token");
}

TEST_F(FirstTokenTest, WhereTheChosenTierCannotBeHadALargerOneAnswers) {
  for (ReplicaView& replica : cluster_.tier(kSmall).replicas) replica.state = ReplicaState::kSilent;
  Generate(Fields("auto"));
  cluster_.call(kNano).SendText("a", -0.6f);
  cluster_.call(kNano).Fail(Cancelled("by us"));
  cluster_.call(kBase).Answer("yes");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->tier, "base");
}

TEST_F(FirstTokenTest, AnAnswerThatWasKeptGoesOnAtAnotherReplicaOfItsTier) {
  Generate(Fields("auto"));
  cluster_.call(kNano, 0).SendText("a", -0.1f);
  cluster_.call(kNano, 0).Fail(Unavailable("gone"));
  EXPECT_THAT(cluster_.call(kNano, 1).spec.resume, ElementsAre('a'));
  cluster_.call(kNano, 1).Answer("b", -9);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "ab");
  EXPECT_EQ(End()->tier, "nano");
}

TEST_F(FirstTokenTest, TheFirstTierIsAskedForTheSignalsOfEveryScorer) {
  GateScorer logprob, margin;
  logprob.weights[2] = 1;
  margin.weights[6] = 1;
  margin.bias = -2;
  for (const float of_first : {3.0f, 1.0f}) {
    UsePlan(logprob, margin);
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields("auto"));
    FakeCall& first = *cluster_.replica(kNano, 0).calls.back();
    EXPECT_TRUE(first.spec.signals);
    first.Send({.token = 'a', .logprob = -9, .margin = of_first, .entropy = 0.5f});
    first.Fail(Cancelled("by us"));
    FakeCall& next = *cluster_.replica(of_first > 2 ? kSmall : kBase, 0).calls.back();
    EXPECT_FALSE(next.spec.signals) << "it is not judged";
    next.Answer("b");
    ASSERT_TRUE(End().ok()) << End().status();
    EXPECT_EQ(End()->tier, of_first > 2 ? "small" : "base");
    EXPECT_EQ(End()->attempts[0].mean_margin, of_first);
    EXPECT_EQ(End()->attempts[0].mean_entropy, 0.5);
    EXPECT_EQ(End()->attempts[1].mean_margin, std::nullopt);
  }
}

}  // namespace
}  // namespace terrace
