// Requests that a smaller tier answered, given to the last tier too.
#include "router/dispatch/shadows.h"

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "router/dispatch/testing_dispatcher.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class ShadowsTest : public DispatcherTest {
 protected:
  // Policy "auto" is a calibrated cascade of nano and base from now on.
  void Use(const ShadowOptions& shadow) {
    const CalibratedGate gate = {
        .scorer = {.features = {{.feature = *FindFeature("mean_logprob"), .weight = 10}}, .bias = 5},
        .threshold = 0.5};
    const Calibration calibration = {
        .policy = "auto",
        .steps = {{.tier = "nano", .model_digest = "nano model", .text_digest = "bytes", .gate = gate},
                  {.tier = "base", .model_digest = "base model", .text_digest = "bytes"}}};
    dispatcher_ = nullptr;
    catalog_ = *ModelCatalog::Make({{.name = "nano", .price = {1, 1}},
                                    {.name = "small", .price = {10, 10}},
                                    {.name = "base", .price = {100, 100}}},
                                   {{.name = "auto", .calibration = calibration, .shadow = shadow}}, "");
    dispatcher_ = MakeDispatcher({cluster_, *catalog_, balancer_, admission_, recorder_, clock_, 7});
  }
  RequestFields Greedy(const std::string& model = "auto") {
    RequestFields fields = Fields(model);
    fields.temperature = 0;
    return fields;
  }
  // To the end.
  void AnswerByNano(RequestFields fields, const std::string& answer = "yes") {
    sink_ = std::make_shared<FakeSink>();
    Generate(std::move(fields));
    for (size_t i = 0; i < cluster_.replica(kNano, 0).calls.size(); ++i) {
      FakeCall& call = *cluster_.replica(kNano, 0).calls[i];
      if (!call.is_done) call.Answer(answer);
    }
    CHECK(End().ok(), Message(End().status()));
  }
  const std::vector<std::shared_ptr<FakeCall>>& BaseCalls() { return cluster_.replica(kBase, 0).calls; }
  double Shadowed(const std::string& result) const {
    return Metric("terrace_policy_shadow_requests_total{policy=\"auto\",result=\"" + result + "\"}");
  }
};

TEST_F(ShadowsTest, TheLastTierVerifiesWhatASmallerOneAnsweredWhenAllIsSaid) {
  Use({.share = 1});
  EXPECT_EQ(Shadowed("agreed"), 0) << "the series is there from the start";
  AnswerByNano(Greedy());
  EXPECT_THAT(BaseCalls(), IsEmpty());
  dispatcher_->Housekeep();
  ASSERT_EQ(BaseCalls().size(), 1u);
  const ExecuteSpec& spec = BaseCalls()[0]->spec;
  EXPECT_THAT(spec.draft, ElementsAre('y', 'e', 's', ByteTokenizer::kEnd));
  EXPECT_EQ(spec.prompt->size(), 4u);
  EXPECT_EQ(spec.priority, -100) << "whoever waits for an answer comes first";
  EXPECT_GT(spec.max_tokens, 0u) << "it need not ramble on";
  BaseCalls()[0]->Answer("yes");
  EXPECT_EQ(Shadowed("agreed"), 1);
  EXPECT_THAT(cluster_.replica(kBase, 0).observer->ends(), ElementsAre(StatusCode::kOk));
  EXPECT_EQ(cluster_.tier(kBase).replicas[0].in_flight->requests.load(), 0u);
}

TEST_F(ShadowsTest, ARequestsLimitOfDraftsIsItsShadowsToo) {
  Use({.share = 1});
  for (const std::optional<uint32_t> limit : {std::optional(0u), std::optional<uint32_t>()}) {
    RequestFields fields = Greedy();
    fields.speculation_max_tokens = limit;
    AnswerByNano(fields);
    dispatcher_->Housekeep();
    EXPECT_EQ(BaseCalls().back()->spec.speculation_max_tokens, limit);
    BaseCalls().back()->Answer("yes");
  }
}

TEST_F(ShadowsTest, NobodyPaysForIt) {
  Use({.share = 1});
  AnswerByNano(Greedy());
  const double tokens = Metric("terrace_tenant_tokens_total{direction=\"completion\",tenant=\"default\"}");
  dispatcher_->Housekeep();
  EXPECT_EQ(admission_.in_flight(), 0u);
  BaseCalls()[0]->Answer("yes");
  ExpectMetered("base", {}, 0);
  EXPECT_EQ(Metric("terrace_tier_attempts_total{result=\"accepted\",tier=\"base\"}"), 0);
  EXPECT_EQ(Metric("terrace_tenant_tokens_total{direction=\"completion\",tenant=\"default\"}"), tokens);
}

TEST_F(ShadowsTest, TwoAnswersAgreeByTheirTextsOrByTheirBeginnings) {
  const struct {
    const char* name;
    double min_agreement;
    const char* answer;
    bool agrees;
  } cases[] = {{"the same", 1, "yes", true},           {"blanks around it", 1, " yes\n", true},
               {"another", 1, "yea", false},           {"half of the tokens", 0.5, "yea", true},
               {"less than half", 0.51, "yea", false}, {"longer", 0.5, "yes, it is", false}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    Use({.share = 1, .min_agreement = c.min_agreement, .max_disagreement = 0.9});
    const double before = Shadowed(c.agrees ? "agreed" : "disagreed");
    AnswerByNano(Greedy());
    dispatcher_->Housekeep();
    BaseCalls().back()->Answer(c.answer);
    EXPECT_EQ(Shadowed(c.agrees ? "agreed" : "disagreed"), before + 1);
    dispatcher_->Housekeep();
    EXPECT_EQ(Metric("terrace_policy_agreement_ratio{policy=\"auto\"}"), c.agrees ? 1 : 0);
  }
}

TEST_F(ShadowsTest, AStopStringEndsBoth) {
  Use({.share = 1});
  RequestFields fields = Greedy();
  fields.stop = {"e"};
  Generate(fields);
  cluster_.call(kNano).SendText("ye");
  cluster_.call(kNano).Fail(Cancelled("by us"));
  ASSERT_TRUE(End().ok()) << End().status();
  dispatcher_->Housekeep();
  cluster_.call(kBase).SendText("yes");
  EXPECT_TRUE(cluster_.call(kBase).is_cancelled);
  cluster_.call(kBase).Fail(Cancelled("by us"));
  EXPECT_EQ(Shadowed("agreed"), 1);
}

TEST_F(ShadowsTest, TextsAreComparedAsClientsAreShownThem) {
  Use({.share = 1});
  RequestFields fields = Greedy();
  fields.stop_tokens = {'z'};
  Generate(fields);
  cluster_.call(kNano).SendText("yesz");
  cluster_.call(kNano).Finish();
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "yes");
  dispatcher_->Housekeep();
  cluster_.call(kBase).Answer("yes");
  EXPECT_EQ(Shadowed("agreed"), 1);
}

TEST_F(ShadowsTest, OfAnAnswerThatWasCutOffOnlyWhatThereIsOfItIsCompared) {
  const AnswerEnd whole = AnswerEnd::kStop, cut = AnswerEnd::kLength;
  const struct {
    const char* name;
    const char* first;
    AnswerEnd first_end;
    const char* second;
    AnswerEnd second_end;
    bool agrees;
  } cases[] = {{"the second goes on", "yes", cut, "yes, it is", whole, true},
               {"both are cut", "yes", cut, "yes, it", cut, true},
               {"the second is cut", "yes, it is", whole, "yes, it", cut, true},
               {"they differ", "yes", cut, "yea", whole, false},
               {"the second ends where the first goes on", "yes", cut, "ye", whole, false},
               {"the first ended where the second goes on", "yes", whole, "yes, it", cut, false},
               {"in the middle of a character", "yes\xc3", cut, "yes\xc3\xa9", whole, true}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    Use({.share = 1, .max_disagreement = 0.9});
    const double before = Shadowed(c.agrees ? "agreed" : "disagreed");
    sink_ = std::make_shared<FakeSink>();
    Generate(Greedy());
    cluster_.call(kNano).SendText(c.first);
    if (c.first_end == whole) cluster_.call(kNano).SendToken(ByteTokenizer::kEnd);
    cluster_.call(kNano).Finish(c.first_end);
    ASSERT_TRUE(End().ok()) << End().status();
    dispatcher_->Housekeep();
    cluster_.call(kBase).SendText(c.second);
    if (c.second_end == whole) cluster_.call(kBase).SendToken(ByteTokenizer::kEnd);
    cluster_.call(kBase).Finish(c.second_end);
    EXPECT_EQ(Shadowed(c.agrees ? "agreed" : "disagreed"), before + 1);
  }
}

TEST_F(ShadowsTest, TokensBehindTheEndOfACutAnswerDoNotCount) {
  Use({.share = 1, .min_agreement = 0.7});
  Generate(Greedy());
  cluster_.call(kNano).SendText("abcd");
  cluster_.call(kNano).Finish(AnswerEnd::kLength);
  ASSERT_TRUE(End().ok()) << End().status();
  dispatcher_->Housekeep();
  cluster_.call(kBase).Answer("abcx and so on");
  EXPECT_EQ(Shadowed("agreed"), 1) << "3 of 4";
}

TEST_F(ShadowsTest, AShadowFitsInTheContext) {
  Use({.share = 1});
  RequestFields fields = Greedy();
  fields.input = std::string(55, 'x');
  AnswerByNano(fields);
  dispatcher_->Housekeep();
  ASSERT_EQ(BaseCalls().size(), 1u);
  EXPECT_EQ(BaseCalls()[0]->spec.max_tokens, 64u - 55u);
  BaseCalls()[0]->Answer("yes");
  EXPECT_EQ(Shadowed("agreed"), 1);
}

TEST_F(ShadowsTest, ThePromptIsTokenizedAgainOnlyForAnotherTokenizerAndIfItIsShort) {
  Use({.share = 1});
  for (const size_t tier : {kNano, kBase}) cluster_.tier(tier).context_length = 1 << 20;
  const struct {
    size_t bytes;
    const char* text_digest;  // of base, by then
    bool begins, is_shared;
  } cases[] = {
      {17 << 10, "bytes", true, true}, {100, "other", true, false}, {17 << 10, "other", false, false}};
  for (const auto& c : cases) {
    SCOPED_TRACE(Concat(c.bytes, " ", c.text_digest));
    const size_t before = BaseCalls().size();
    RequestFields fields = Greedy();
    fields.input = std::string(c.bytes, 'x');
    AnswerByNano(fields);
    cluster_.tier(kBase).text_digest = c.text_digest;
    dispatcher_->Housekeep();
    cluster_.tier(kBase).text_digest = "bytes";
    ASSERT_EQ(BaseCalls().size(), before + (c.begins ? 1 : 0));
    if (!c.begins) continue;
    EXPECT_EQ(BaseCalls().back()->spec.prompt == cluster_.call(kNano).spec.prompt, c.is_shared);
    EXPECT_EQ(BaseCalls().back()->spec.prompt->size(), c.bytes);
    BaseCalls().back()->Answer("yes");
  }
  EXPECT_EQ(Shadowed("dropped"), 1);
}

TEST_F(ShadowsTest, OnlyGreedyRequestsForOneAnswerOfThePolicysOwnChoiceAreCompared) {
  Use({.share = 1});
  RequestFields drawn = Fields("auto"), several = Greedy(), named = Greedy(), limited = Greedy();
  several.choices = 2;
  named.tier = "nano";
  limited.max_tokens = 8;
  limited.max_usd = 1e-4;
  for (const RequestFields& fields : {drawn, several, named, limited, Greedy("nano")}) AnswerByNano(fields);
  dispatcher_->Housekeep();
  EXPECT_THAT(BaseCalls(), IsEmpty());
  sink_ = std::make_shared<FakeSink>();
  Generate(Greedy());
  cluster_.call(kNano).Answer("no", kUnsure);
  cluster_.call(kBase).Answer("yes");  // itself
  ASSERT_TRUE(End().ok()) << End().status();
  dispatcher_->Housekeep();
  EXPECT_EQ(BaseCalls().size(), 1u);
}

TEST_F(ShadowsTest, AShareOfTheRequestsIsDrawn) {
  Use({.share = 0.25});
  for (size_t i = 0; i < 400; ++i) {
    AnswerByNano(Greedy());
    dispatcher_->Housekeep();
    if (!BaseCalls().empty() && !BaseCalls().back()->is_done) BaseCalls().back()->Answer("yes");
  }
  EXPECT_GT(BaseCalls().size(), 60u);
  EXPECT_LT(BaseCalls().size(), 140u);
  EXPECT_EQ(Shadowed("agreed"), static_cast<double>(BaseCalls().size()));
}

TEST_F(ShadowsTest, MoreThanSoManyAtOnceAreLeftOut) {
  Use({.share = 1, .max_in_flight = 1});
  AnswerByNano(Greedy());
  AnswerByNano(Greedy());
  EXPECT_EQ(Shadowed("dropped"), 1);
  dispatcher_->Housekeep();
  ASSERT_EQ(BaseCalls().size(), 1u);
  AnswerByNano(Greedy());
  EXPECT_EQ(Shadowed("dropped"), 2) << "one is running";
  BaseCalls()[0]->Answer("yes");
  AnswerByNano(Greedy());
  dispatcher_->Housekeep();
  EXPECT_EQ(BaseCalls().size(), 2u);
}

TEST_F(ShadowsTest, WhoWaitsForTheTierComesFirst) {
  Use({.share = 1});
  admission_.SetPlaces(std::array<uint32_t, 3>{8, 8, 1});
  AnswerByNano(Greedy());
  dispatcher_->Housekeep();
  ASSERT_EQ(BaseCalls().size(), 1u);
  const auto first = std::make_shared<FakeSink>(), second = std::make_shared<FakeSink>();
  for (const auto& sink : {first, second}) dispatcher_->Generate(*Request::Make(Greedy("base")), sink);
  ASSERT_EQ(admission_.queued(kBase), 1u);
  dispatcher_->Housekeep();
  EXPECT_TRUE(BaseCalls()[0]->is_cancelled);
  BaseCalls()[0]->Fail(Cancelled("by us"));
  EXPECT_EQ(Shadowed("dropped"), 1);
  EXPECT_THAT(cluster_.replica(kBase, 0).observer->ends(), IsEmpty()) << "the worker did nothing wrong";
  // One more, while they are at it.
  const auto third = std::make_shared<FakeSink>();
  dispatcher_->Generate(*Request::Make(Greedy()), third);
  cluster_.call(kNano).Answer("yes");
  dispatcher_->Housekeep();
  BaseCalls()[1]->Answer("a");
  BaseCalls()[2]->Answer("b");
  EXPECT_TRUE(first->end.has_value() && second->end.has_value() && third->end.has_value());
  dispatcher_->Housekeep();
  EXPECT_EQ(BaseCalls().size(), 3u) << "a shadow that could not begin at once is forgotten";
  EXPECT_EQ(Shadowed("dropped"), 2);
}

TEST_F(ShadowsTest, AFailureIsNoDisagreement) {
  Use({.share = 1});
  AnswerByNano(Greedy());
  dispatcher_->Housekeep();
  cluster_.call(kBase).SendText("n");
  cluster_.call(kBase).Fail(Unavailable("gone"));
  EXPECT_EQ(Shadowed("failed"), 1);
  EXPECT_EQ(Shadowed("disagreed"), 0);
  EXPECT_THAT(cluster_.replica(kBase, 0).observer->ends(), ElementsAre(StatusCode::kUnavailable));
  RequestFields other = Greedy();
  other.input = std::string("efgh");
  AnswerByNano(other);
  dispatcher_->Housekeep();
  cluster_.call(kBase).SendToken(9999);  // there is no such token
  EXPECT_TRUE(cluster_.call(kBase).is_cancelled);
  cluster_.call(kBase).Fail(Cancelled("by us"));
  EXPECT_EQ(Shadowed("failed"), 2);
}

TEST_F(ShadowsTest, WhatTookAWorkerDownIsNotShadowedAgain) {
  Use({.share = 1});
  AnswerByNano(Greedy());
  dispatcher_->Housekeep();
  cluster_.call(kBase).Fail(Unavailable("gone"));
  AnswerByNano(Greedy());
  dispatcher_->Housekeep();
  EXPECT_EQ(BaseCalls().size(), 1u);
  EXPECT_EQ(Shadowed("dropped"), 1);
  RequestFields other = Greedy();
  other.input = std::string("efgh");
  AnswerByNano(other);
  dispatcher_->Housekeep();
  ASSERT_EQ(BaseCalls().size(), 2u);
  cluster_.call(kBase).Fail(WithReason(Unavailable("it drains"), "draining"));
  AnswerByNano(other);
  dispatcher_->Housekeep();
  EXPECT_EQ(BaseCalls().size(), 3u) << "that was no fault of the request";
}

TEST_F(ShadowsTest, AWorkerThatDiesUnderAShadowCountsForTheRequest) {
  Use({.share = 1});
  AnswerByNano(Greedy());
  dispatcher_->Housekeep();
  cluster_.call(kBase).Start(0);
  cluster_.call(kBase).Fail(Unavailable("gone"));
  EXPECT_EQ(Shadowed("failed"), 1);
  sink_ = std::make_shared<FakeSink>();
  Generate(Greedy("base"));
  cluster_.call(kBase).Start(0);
  cluster_.call(kBase).Fail(Unavailable("gone"));
  EXPECT_EQ(Reason(End().status()), "poison_request");
  EXPECT_TRUE(cluster_.replica(kBase, 1).calls.empty()) << "no third one is asked";
  EXPECT_EQ(Metric("terrace_poison_requests_total{event=\"quarantined\",tier=\"base\"}"), 1);
}

TEST_F(ShadowsTest, AWorkerThatDiesUnderARequestKeepsItsShadowAway) {
  Use({.share = 1});
  const auto cancel = Generate(Greedy("base"));
  cluster_.call(kBase).Start(0);
  cluster_.call(kBase).Fail(Unavailable("gone"));
  cancel();
  cluster_.call(kBase, 1).Fail(Cancelled("by us"));
  AnswerByNano(Greedy());
  dispatcher_->Housekeep();
  EXPECT_EQ(BaseCalls().size(), 1u);
  EXPECT_EQ(Shadowed("dropped"), 1);
}

TEST_F(ShadowsTest, OneDeathUnderARequestAndItsShadowIsOne) {
  Use({.share = 1});
  AnswerByNano(Greedy());
  dispatcher_->Housekeep();
  sink_ = std::make_shared<FakeSink>();
  Generate(Greedy("base"));
  const auto calls = BaseCalls();
  ASSERT_EQ(calls.size(), 2u);
  for (const auto& call : calls) call->Start(0);
  for (const auto& call : calls) call->Fail(Unavailable("gone"));
  cluster_.call(kBase, 1).Answer("yes");
  EXPECT_TRUE(End().ok()) << End().status();
}

TEST_F(ShadowsTest, WithoutAReplicaItIsDropped) {
  Use({.share = 1});
  AnswerByNano(Greedy());
  for (ReplicaView& replica : cluster_.tier(kBase).replicas) replica.state = ReplicaState::kSilent;
  dispatcher_->Housekeep();
  EXPECT_EQ(Shadowed("dropped"), 1);
}

TEST_F(ShadowsTest, WhenTooManyDisagreeTheLastTierAnswersAloneUntilAReload) {
  const ShadowOptions options = {.share = 1, .max_disagreement = 0.1, .window = 10, .delta = 0.02};
  Use(options);
  for (int i = 0; i < 2; ++i) {  // 0.1 squared is less than 0.02
    AnswerByNano(Greedy());
    EXPECT_EQ(End()->reason, "cascade: accepted at step 1");
    dispatcher_->Housekeep();
    EXPECT_EQ(Metric("terrace_policy_drifted{policy=\"auto\"}"), 0);
    cluster_.call(kBase).Answer("no");
  }
  dispatcher_->Housekeep();
  EXPECT_EQ(Metric("terrace_policy_drifted{policy=\"auto\"}"), 1);
  sink_ = std::make_shared<FakeSink>();
  Generate(Greedy());
  cluster_.call(kBase).Answer("yes");
  EXPECT_EQ(End()->reason, "fallback: drift");
  EXPECT_EQ(End()->tier, "base");
  RequestFields named = Greedy();
  named.tier = "nano";
  AnswerByNano(named);
  EXPECT_EQ(End()->tier, "nano") << "who asks for it gets it";
  Use(options);
  AnswerByNano(Greedy());
  EXPECT_EQ(End()->tier, "nano");
}

TEST_F(ShadowsTest, TheEndOfTheDispatcherCancelsThemAndWhatStillComesTouchesNothing) {
  Use({.share = 1});
  AnswerByNano(Greedy());
  dispatcher_->Housekeep();
  AnswerByNano(Greedy());  // not begun yet
  dispatcher_ = nullptr;
  ASSERT_EQ(BaseCalls().size(), 1u);
  EXPECT_TRUE(BaseCalls()[0]->is_cancelled);
  BaseCalls()[0]->SendText("y");
  BaseCalls()[0]->Fail(Cancelled("by us"));
  for (const char* result : {"agreed", "disagreed", "failed", "dropped"})
    EXPECT_EQ(Shadowed(result), 0) << result;
}

TEST_F(ShadowsTest, TheEndMayComeFromAnotherThreadWhileTheDispatcherGoes) {
  for (int i = 0; i < 200; ++i) {
    Use({.share = 1});
    AnswerByNano(Greedy());
    dispatcher_->Housekeep();
    std::thread worker([call = BaseCalls().back()] { call->Answer("yes"); });
    dispatcher_ = nullptr;
    worker.join();
    EXPECT_TRUE(BaseCalls().back()->is_done);
  }
  ASSERT_EQ(BaseCalls().size(), 200u);
  for (const char* result : {"disagreed", "failed", "dropped"}) EXPECT_EQ(Shadowed(result), 0) << result;
  // Those that came before the end: each was told to the replica's observer, and no other was.
  EXPECT_EQ(static_cast<double>(cluster_.replica(kBase, 0).observer->ends().size()), Shadowed("agreed"));
  EXPECT_EQ(cluster_.tier(kBase).replicas[0].in_flight->requests.load(), 0u);
  EXPECT_EQ(cluster_.tier(kBase).replicas[0].in_flight->prompt_tokens.load(), 0u);
  EXPECT_EQ(admission_.in_flight(), 0u);
}

}  // namespace
}  // namespace terrace
