// Requests that are given to tiers that did not answer them.
#include "router/dispatch/shadows.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/mapped_file.h"
#include "router/dispatch/testing_dispatcher.h"
#include "router/tier/records.h"

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
    UsePolicy({.name = "auto", .calibration = calibration, .shadow = shadow});
  }
  // It asks nano, with this gate, and base.
  void UseSteps(const ShadowOptions& shadow, const Gate& gate = Gate(kThreshold)) {
    UsePolicy({.name = "auto", .steps = {{kNano, gate}, {kBase, {}, true}}, .shadow = shadow});
  }
  void UsePolicy(CatalogPolicy policy) {
    dispatcher_ = nullptr;
    catalog_ = *ModelCatalog::Make({{.name = "nano", .price = {1, 1}},
                                    {.name = "small", .price = {10, 10}},
                                    {.name = "base", .price = {100, 100}}},
                                   {std::move(policy)}, "");
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
               {"in the middle of a character", "yes\xc3", cut, "yes\xc3\xa9", whole, true},
               {"in the middle of the first one", "\xc3", cut, "\xc3\xa9", whole, true},
               {"nothing of it is shown", "\xc3", cut, "yes", whole, false}};
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

TEST_F(ShadowsTest, ATierThatAnswersAllIsComparedWithItsBaselineAndFallsBackToIt) {
  UseSteps({.share = 1, .max_disagreement = 0.1, .window = 10, .delta = 0.02},
           Gate(-1000, {.tokens = 1, .accept_above = -1000}));
  for (int i = 0; i < 2; ++i) {
    sink_ = std::make_shared<FakeSink>();
    Generate(Greedy());
    cluster_.call(kNano).SendText("y", -500);
    EXPECT_EQ(sink_->text, "y") << "it is not held back";
    cluster_.call(kNano).Answer("es");
    EXPECT_EQ(End()->tier, "nano");
    dispatcher_->Housekeep();
    cluster_.call(kBase).Answer("no");
  }
  EXPECT_EQ(Shadowed("disagreed"), 2);
  sink_ = std::make_shared<FakeSink>();
  Generate(Greedy());
  cluster_.call(kBase).Answer("yes");
  EXPECT_EQ(End()->reason, "fallback: drift");
  EXPECT_EQ(End()->tier, "base");
}

// The same policy, with a file of records.
class ShadowRecordsTest : public ShadowsTest {
 protected:
  ShadowRecordsTest() {
    std::filesystem::remove_all(path_);
    for (const size_t tier : {kNano, kBase}) cluster_.tier(tier).parameters = 1000 * (tier + 1);
  }
  ShadowOptions Recording(double share = 1) const {
    return {.share = share, .max_disagreement = 1, .records_file = path_};
  }
  double Recorded(const std::string& result) const {
    return Metric("terrace_policy_shadow_records_total{policy=\"auto\",result=\"" + result + "\"}");
  }
  // Nano's answer is not good enough.
  void AnswerByBase(RequestFields fields, const std::string& answer = "yes") {
    sink_ = std::make_shared<FakeSink>();
    Generate(std::move(fields));
    cluster_.call(kNano).Answer("hm", kUnsure);
    cluster_.call(kBase).Answer(answer);
    CHECK(End().ok(), Message(End().status()));
  }
  // What was offered last, to its end.
  void RecordOne(const std::string& of_nano, const std::string& of_base) {
    dispatcher_->Housekeep();
    cluster_.call(kNano).Answer(of_nano);
    dispatcher_->Housekeep();
    cluster_.call(kBase).Answer(of_base);
    dispatcher_->Housekeep();
  }
  bool HasBegun() { return !cluster_.call(kNano).is_done; }
  std::string Text() const { return ReadFile(path_).value(); }
  Records Read() const { return ParseRecords(Text()).value(); }

  const std::string path_ = ::testing::TempDir() + "shadow_records_test.jsonl";
};

TEST_F(ShadowRecordsTest, EveryTierIsAskedAloneForAllOfItsOwnAnswerWithItsSignals) {
  UseSteps(Recording());
  EXPECT_EQ(Recorded("written"), 0) << "the series is there from the start";
  AnswerByNano(Greedy());
  EXPECT_EQ(cluster_.replica(kNano, 0).calls.size(), 1u);
  dispatcher_->Housekeep();
  ASSERT_EQ(cluster_.replica(kNano, 0).calls.size(), 2u);
  EXPECT_THAT(BaseCalls(), IsEmpty()) << "one after the other";
  FakeCall& of_nano = cluster_.call(kNano);
  EXPECT_THAT(of_nano.spec.draft, IsEmpty());
  of_nano.Send({.token = 'y', .logprob = -0.5f, .margin = 1, .entropy = 0.25f});
  of_nano.Send({.token = ByteTokenizer::kEnd, .logprob = -0.25f, .margin = 2, .entropy = 0.5f});
  of_nano.Finish();
  dispatcher_->Housekeep();
  ASSERT_EQ(BaseCalls().size(), 1u);
  EXPECT_THAT(BaseCalls()[0]->spec.draft, ElementsAre('y', ByteTokenizer::kEnd));
  for (const FakeCall* call : {&of_nano, BaseCalls()[0].get()}) {
    EXPECT_TRUE(call->spec.signals);
    EXPECT_EQ(call->spec.max_tokens, 60u) << "all that the context holds";
    EXPECT_EQ(call->spec.priority, -100);
  }
  BaseCalls()[0]->Answer("yo");
  EXPECT_FALSE(std::filesystem::exists(path_)) << "the housekeeper writes it";
  dispatcher_->Housekeep();
  const Records records = Read();
  EXPECT_THAT(records.tiers, ElementsAre(RecordedTier{"nano", "nano model", "bytes", 1000},
                                         RecordedTier{"base", "base model", "bytes", 3000}));
  ASSERT_EQ(records.rows.size(), 1u);
  EXPECT_EQ(records.rows[0].task, "shadow");
  EXPECT_EQ(records.rows[0].prompt.bytes, 4u);
  const RecordedAnswer &first = records.rows[0].answers[0], &last = records.rows[0].answers[1];
  EXPECT_FALSE(first.is_right);
  EXPECT_EQ(first.prompt_tokens, 4u);
  EXPECT_EQ(first.signals.tokens, 2u);
  EXPECT_EQ(first.signals.mean_logprob, -0.375);
  EXPECT_EQ(first.signals.min_logprob, -0.5);
  EXPECT_EQ(first.signals.mean_margin, 1.5);
  EXPECT_EQ(first.signals.first_entropy, 0.25);
  EXPECT_EQ(first.draft_agreement, 0);
  EXPECT_TRUE(last.is_right) << "by definition";
  EXPECT_EQ(last.signals.tokens, 3u);
  EXPECT_EQ(last.draft_agreement, 0.5);
  EXPECT_EQ(Recorded("written"), 1);
  EXPECT_EQ(Shadowed("disagreed"), 1) << "the client was answered by nano: that is a pair too";
}

TEST_F(ShadowRecordsTest, AnAnswerIsRightWhereItAgreesWithTheLastTiers) {
  const struct {
    double min_agreement;
    const char* answer;
    bool is_right;
  } cases[] = {
      {1, "yes", true}, {1, " yes\n", true}, {1, "yea", false}, {0.5, "yea", true}, {0.51, "yea", false}};
  for (const auto& c : cases) {
    std::filesystem::remove(path_);
    ShadowOptions options = Recording();
    options.min_agreement = c.min_agreement;
    UseSteps(options);
    AnswerByNano(Greedy());
    RecordOne(c.answer, "yes");
    EXPECT_EQ(Read().rows[0].answers[0].is_right, c.is_right) << c.answer << " " << c.min_agreement;
  }
}

TEST_F(ShadowRecordsTest, WhoAnsweredTheClientOrWhetherAnybodyDidChangesNothing) {
  UseSteps(Recording());
  AnswerByNano(Greedy());
  RecordOne("yes", "yes");
  AnswerByBase(Greedy());
  RecordOne("yes", "yes");
  sink_ = std::make_shared<FakeSink>();
  const auto cancel = Generate(Greedy());
  cancel();
  cluster_.call(kNano).Fail(Cancelled("by us"));
  RecordOne("yes", "yes");
  sink_ = std::make_shared<FakeSink>();
  Generate(Greedy());
  cluster_.call(kNano).Fail(DeadlineExceeded("it is over"));
  RecordOne("yes", "yes");
  Records records = Read();
  ASSERT_EQ(records.rows.size(), 4u);
  for (Record& row : records.rows) {
    row.id = records.rows[0].id;
    EXPECT_EQ(RecordLine(row), RecordLine(records.rows[0]));
  }
  EXPECT_EQ(Shadowed("agreed"), 1) << "of the one that nano answered";
}

TEST_F(ShadowRecordsTest, TheDrawKnowsNothingOfWhoAnswered) {
  std::vector<bool> drawn[2];
  for (const bool by_base : {false, true}) {
    std::filesystem::remove(path_);
    UseSteps(Recording(0.25));
    for (size_t i = 0; i < 200; ++i) {
      by_base ? AnswerByBase(Greedy()) : AnswerByNano(Greedy());
      dispatcher_->Housekeep();
      drawn[by_base].push_back(HasBegun());
      if (HasBegun()) RecordOne("yes", "yes");
    }
    const auto count = static_cast<size_t>(std::ranges::count(drawn[by_base], true));
    EXPECT_GT(count, 25u);
    EXPECT_LT(count, 75u);
    EXPECT_EQ(Read().rows.size(), count);
  }
  EXPECT_EQ(drawn[0], drawn[1]);
}

TEST_F(ShadowRecordsTest, NorDoesTheSizeOfThePromptsThatAreTaken) {
  UseSteps(Recording());
  for (const size_t tier : {kNano, kBase}) cluster_.tier(tier).context_length = 1 << 20;
  RequestFields fields = Greedy();
  fields.input = std::string(17 << 10, 'x');
  for (const bool is_one_tokenizer : {true, false}) {
    cluster_.tier(kBase).text_digest = is_one_tokenizer ? "bytes" : "other";
    for (const bool by_base : {false, true}) {
      by_base ? AnswerByBase(fields) : AnswerByNano(fields);
      dispatcher_->Housekeep();
      EXPECT_EQ(HasBegun(), is_one_tokenizer) << by_base;
      if (HasBegun()) RecordOne("yes", "yes");
    }
  }
  EXPECT_EQ(Recorded("written"), 2);
  EXPECT_EQ(Recorded("dropped"), 2);
}

TEST_F(ShadowRecordsTest, OnlyWhatThePolicyChoosesATierForByItselfIsRecorded) {
  UseSteps(Recording());
  RequestFields drawn = Fields("auto"), several = Greedy(), named = Greedy(), limited = Greedy();
  several.choices = 2;
  named.tier = "nano";
  limited.max_tokens = 8;
  limited.max_usd = 1;
  for (const RequestFields& fields : {drawn, several, named, limited, Greedy("nano")}) {
    AnswerByNano(fields);
    dispatcher_->Housekeep();
    EXPECT_FALSE(HasBegun());
  }
}

TEST_F(ShadowRecordsTest, NoTextIsInTheFile) {
  UseSteps(Recording());
  RequestFields fields = Greedy();
  fields.input = std::string("secret of the prompt");
  fields.request_id = "secret-of-the-id";
  AnswerByNano(fields);
  RecordOne("secret of nano", "secret of base");
  EXPECT_EQ(Text().find("secret"), std::string::npos) << Text();
  struct stat info = {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(ShadowRecordsTest, WhatATierCannotTakeOrFailsAtIsNoRecord) {
  UseSteps(Recording());
  AnswerByNano(Greedy());
  dispatcher_->Housekeep();
  cluster_.call(kNano).Answer("yes");
  for (ReplicaView& replica : cluster_.tier(kBase).replicas) replica.state = ReplicaState::kSilent;
  dispatcher_->Housekeep();
  EXPECT_EQ(Recorded("dropped"), 1);
  EXPECT_EQ(Shadowed("dropped"), 1);
  for (ReplicaView& replica : cluster_.tier(kBase).replicas) replica.state = ReplicaState::kReady;
  AnswerByBase(Greedy());
  dispatcher_->Housekeep();
  cluster_.call(kNano).Fail(Internal("broken"));
  EXPECT_EQ(Recorded("failed"), 1);
  EXPECT_EQ(Shadowed("failed"), 0) << "base had answered the client";
  AnswerByBase(Greedy());
  dispatcher_->Housekeep();
  cluster_.call(kNano).Send({.token = ByteTokenizer::kEnd, .margin = std::numeric_limits<float>::infinity()});
  cluster_.call(kNano).Finish();
  dispatcher_->Housekeep();
  cluster_.call(kBase).Answer("yes");
  dispatcher_->Housekeep();
  EXPECT_EQ(Recorded("failed"), 2) << "its margin is not finite";
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(ShadowRecordsTest, OneUnderWayCountsUntilItIsWritten) {
  ShadowOptions options = Recording();
  options.max_in_flight = 1;
  UseSteps(options);
  AnswerByBase(Greedy());
  AnswerByBase(Greedy());
  EXPECT_EQ(Recorded("dropped"), 1) << "one is offered";
  dispatcher_->Housekeep();
  const auto of_nano = cluster_.replica(kNano, 0).calls.back();
  AnswerByBase(Greedy());
  EXPECT_EQ(Recorded("dropped"), 2) << "it is under way";
  of_nano->Answer("yes");
  AnswerByBase(Greedy());
  EXPECT_EQ(Recorded("dropped"), 3) << "between two tiers";
  dispatcher_->Housekeep();
  BaseCalls().back()->Answer("yes");
  AnswerByBase(Greedy());
  EXPECT_EQ(Recorded("dropped"), 4) << "not written yet";
  dispatcher_->Housekeep();
  EXPECT_EQ(Recorded("written"), 1);
  AnswerByBase(Greedy());
  dispatcher_->Housekeep();
  EXPECT_TRUE(HasBegun());
  EXPECT_EQ(Recorded("dropped"), 4);
}

TEST_F(ShadowRecordsTest, WhoWaitsForATierComesFirst) {
  UseSteps(Recording());
  admission_.SetPlaces(std::array<uint32_t, 3>{1, 8, 8});
  AnswerByBase(Greedy());
  dispatcher_->Housekeep();
  const auto of_nano = cluster_.replica(kNano, 0).calls.back();
  const auto first = std::make_shared<FakeSink>(), second = std::make_shared<FakeSink>();
  for (const auto& sink : {first, second}) dispatcher_->Generate(*Request::Make(Greedy("nano")), sink);
  ASSERT_EQ(admission_.queued(kNano), 1u);
  dispatcher_->Housekeep();
  EXPECT_TRUE(of_nano->is_cancelled);
  of_nano->Fail(Cancelled("by us"));
  EXPECT_EQ(Recorded("dropped"), 1);
  cluster_.call(kNano).Answer("a");
  cluster_.call(kNano).Answer("b");
  EXPECT_TRUE(first->end.has_value() && second->end.has_value());
}

TEST_F(ShadowRecordsTest, AFileOfOtherTiersIsLeftAloneAndNoMoreAreDrawnButDriftIsStillJudged) {
  const std::string other =
      RecordsHead({{"nano", "old model", "bytes", 1000}, {"base", "base model", "bytes", 3000}});
  std::ofstream(path_) << other;
  ShadowOptions options = Recording();
  options.max_disagreement = 0.5;
  UseSteps(options);
  AnswerByNano(Greedy());
  RecordOne("yes", "yes");
  EXPECT_EQ(Recorded("refused"), 1);
  EXPECT_EQ(Text(), other);
  AnswerByNano(Greedy());
  dispatcher_->Housekeep();
  EXPECT_FALSE(HasBegun());
  cluster_.call(kBase).Answer("yes");
  EXPECT_EQ(Shadowed("agreed"), 2);
  AnswerByBase(Greedy());
  dispatcher_->Housekeep();
  EXPECT_FALSE(HasBegun());
  EXPECT_EQ(Recorded("refused"), 1);
}

TEST_F(ShadowRecordsTest, AnotherModelOfATierEndsThem) {
  UseSteps(Recording());
  AnswerByBase(Greedy());
  RecordOne("yes", "yes");
  const std::string before = Text();
  cluster_.tier(kBase).model_digest = "new model";
  AnswerByBase(Greedy());
  RecordOne("yes", "yes");
  cluster_.tier(kBase).model_digest = "base model";
  AnswerByBase(Greedy());
  dispatcher_->Housekeep();
  EXPECT_FALSE(HasBegun()) << "until a reload";
  EXPECT_EQ(Recorded("refused"), 1);
  EXPECT_EQ(Text(), before);
}

TEST_F(ShadowRecordsTest, AsManyAsAreWantedAreWritten) {
  ShadowOptions options = Recording();
  options.max_records = 2;
  UseSteps(options);
  for (int i = 0; i < 3; ++i) {
    AnswerByBase(Greedy());
    RecordOne("yes", "yes");
  }
  EXPECT_EQ(Read().rows.size(), 2u);
  AnswerByBase(Greedy());
  dispatcher_->Housekeep();
  EXPECT_FALSE(HasBegun());
}

TEST_F(ShadowRecordsTest, WhatCannotBeWrittenIsCountedAndTheNextIsTried) {
  std::filesystem::create_directory(path_);
  UseSteps(Recording());
  for (int i = 0; i < 2; ++i) {
    AnswerByBase(Greedy());
    RecordOne("yes", "yes");
  }
  EXPECT_EQ(Recorded("unwritten"), 2);
  std::filesystem::remove(path_);
  AnswerByBase(Greedy());
  RecordOne("yes", "yes");
  EXPECT_EQ(Recorded("written"), 1);
  EXPECT_EQ(Read().rows.size(), 1u);
}

TEST_F(ShadowRecordsTest, AVerifyHasThemToo) {
  UsePolicy({.name = "auto", .steps = {{kNano, Gate::Closed()}, {kBase, {}, true}}, .shadow = Recording()});
  AnswerByBase(Greedy());
  RecordOne("yea", "yes");
  EXPECT_FALSE(Read().rows[0].answers[0].is_right);
  for (const char* result : {"agreed", "disagreed"})
    EXPECT_EQ(Shadowed(result), 0) << "a draft answers nobody";
}

TEST_F(ShadowRecordsTest, ThePairsAmongThemDriftAndRecordsGoOn) {
  ShadowOptions options = Recording();
  options.max_disagreement = 0.1;
  options.window = 10;
  options.delta = 0.02;
  UseSteps(options);
  for (int i = 0; i < 2; ++i) {
    AnswerByNano(Greedy());
    RecordOne("yes", "no");
  }
  sink_ = std::make_shared<FakeSink>();
  Generate(Greedy());
  cluster_.call(kBase).Answer("no");
  EXPECT_EQ(End()->reason, "fallback: drift");
  RecordOne("yes", "no");
  EXPECT_EQ(Read().rows.size(), 3u) << "a calibration may be made from them";
}

TEST_F(ShadowRecordsTest, WithoutALimitTheAgreementIsShownAndNothingDrifts) {
  UseSteps(Recording());
  for (int i = 0; i < 20; ++i) {
    AnswerByNano(Greedy());
    RecordOne("yes", "no");
  }
  dispatcher_->Housekeep();
  EXPECT_EQ(Metric("terrace_policy_agreement_ratio{policy=\"auto\"}"), 0);
  EXPECT_EQ(Metric("terrace_policy_drifted{policy=\"auto\"}"), 0);
}

TEST_F(ShadowRecordsTest, TheEndOfTheDispatcherEndsThem) {
  UseSteps(Recording());
  AnswerByBase(Greedy());
  dispatcher_->Housekeep();
  ASSERT_TRUE(HasBegun());
  dispatcher_ = nullptr;
  EXPECT_TRUE(cluster_.call(kNano).is_cancelled);
  cluster_.call(kNano).Answer("yes");
  EXPECT_FALSE(std::filesystem::exists(path_));
}

}  // namespace
}  // namespace terrace
