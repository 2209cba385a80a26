#include <optional>

#include "base/json.h"
#include "router/dispatch/attempts.h"
#include "router/dispatch/failover.h"
#include "router/dispatch/testing_dispatcher.h"
#include "router/request/param.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(DispatcherTest, ANamedTierStreamsAsItsWorkerSends) {
  Generate(Fields("base"));
  cluster_.call(kBase).SendText("he");
  EXPECT_EQ(sink_->text, "he");
  EXPECT_FALSE(sink_->end.has_value());
  cluster_.call(kBase).Answer("llo");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "hello");
  EXPECT_EQ(End()->tier, "base");
  EXPECT_EQ(End()->end, AnswerEnd::kStop);
  EXPECT_EQ(End()->usage, (TokenUsage{4, 0, 6})) << "the end token counts";
  EXPECT_DOUBLE_EQ(End()->price_usd, (4 + 6) * 100 / 1e6);
}

TEST_F(DispatcherTest, AConfidentFirstTierAnswersAlone) {
  Generate(Fields("auto"));
  cluster_.call(kNano).Answer("yes", kConfident);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "yes");
  EXPECT_EQ(End()->tier, "nano");
  ASSERT_EQ(End()->attempts.size(), 1u);
  EXPECT_TRUE(End()->attempts[0].accepted);
  EXPECT_EQ(End()->attempts[0].threshold, kThreshold);
  EXPECT_TRUE(cluster_.replica(kSmall, 0).calls.empty());
}

TEST_F(DispatcherTest, AHeldBackAnswerIsShownOnlyWhenItsGateAccepts) {
  Generate(Fields("auto"));
  cluster_.call(kNano).SendText("no", kUnsure);
  EXPECT_EQ(sink_->text, "");
  cluster_.call(kNano).Answer("pe", kUnsure);
  EXPECT_EQ(sink_->text, "") << "a rejected answer is never seen";
  cluster_.call(kSmall).SendText("y", kConfident);
  EXPECT_EQ(sink_->text, "") << "small is not the last tier either";
  cluster_.call(kSmall).Answer("es", kConfident);
  EXPECT_EQ(sink_->text, "yes");
  EXPECT_EQ(End()->tier, "small");
}

TEST_F(DispatcherTest, EscalationSumsThePriceOfAllAttemptsAndCountsTheTokensOfTheAnswer) {
  Generate(Fields("auto"));
  cluster_.call(kNano).Answer("a", kUnsure);    // 4 + 2 tokens
  cluster_.call(kSmall).Answer("bc", kUnsure);  // 4 + 3
  cluster_.call(kBase).Answer("def", kUnsure);  // 4 + 4; the last one is always accepted
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "def");
  EXPECT_EQ(End()->usage, (TokenUsage{4, 0, 4}));
  EXPECT_DOUBLE_EQ(End()->price_usd, (6 * 1 + 7 * 10 + 8 * 100) / 1e6);
  ASSERT_EQ(End()->attempts.size(), 3u);
  EXPECT_FALSE(End()->attempts[0].accepted);
  EXPECT_FALSE(End()->attempts[1].accepted);
  EXPECT_TRUE(End()->attempts[2].accepted);
  EXPECT_FALSE(End()->attempts[2].threshold.has_value());
  EXPECT_NEAR(End()->attempts[1].mean_logprob, kUnsure, 1e-6);
  EXPECT_THAT(metrics_.Render(), HasSubstr("terrace_escalations_total{from=\"nano\",to=\"small\"} 1"));
}

TEST_F(DispatcherTest, TheLastTierOfACascadeStreamsLive) {
  Generate(Fields("auto"));
  cluster_.call(kNano).Answer("a", kUnsure);
  cluster_.call(kSmall).Answer("b", kUnsure);
  cluster_.call(kBase).SendText("c");
  EXPECT_EQ(sink_->text, "c");
  cluster_.call(kBase).Finish(AnswerEnd::kLength);
  EXPECT_EQ(End()->end, AnswerEnd::kLength);
}

TEST_F(DispatcherTest, AllAttemptsHaveTheSameSeedAndRequestsWithoutOneGetDifferentOnes) {
  Generate(Fields("auto"));
  cluster_.call(kNano).Answer("a", kUnsure);
  const auto seed = cluster_.call(kNano).spec.sampling.seed;
  ASSERT_TRUE(seed.has_value());
  EXPECT_EQ(cluster_.call(kSmall).spec.sampling.seed, seed);
  Generate(Fields("nano"));
  EXPECT_NE(cluster_.call(kNano).spec.sampling.seed, seed);
  RequestFields fields = Fields("nano");
  fields.seed = 42;
  Generate(std::move(fields));
  EXPECT_EQ(cluster_.call(kNano).spec.sampling.seed, 42u);
}

TEST_F(DispatcherTest, AWorkerLostBeforeAnythingWasShownIsReplacedOnceByOneNotTriedYet) {
  Generate(Fields("base"));
  cluster_.call(kBase, 0).Fail(Unavailable("ipv4:10.0.0.1:8101: Socket closed"));
  ASSERT_EQ(cluster_.replica(kBase, 1).calls.size(), 1u);
  cluster_.call(kBase, 1).Answer("ok");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "ok");
  EXPECT_EQ(End()->usage, (TokenUsage{4, 0, 3})) << "the failed attempt costs nothing";
  ASSERT_EQ(End()->attempts.size(), 2u);
  EXPECT_EQ(End()->attempts[0].replica, "base-0");
  EXPECT_FALSE(End()->attempts[0].accepted);
}

TEST_F(DispatcherTest, WhenNoReplicaIsLeftTheLastFailureIsTheClientsError) {
  Generate(Fields("base"));
  for (const size_t replica : {0, 1}) {
    const Status refused = Unavailable("ipv4:10.0.0.", replica, ":8101: Connection refused");
    cluster_.call(kBase, replica).Fail(WithReason(refused, kUnreachedReason));
  }
  EXPECT_EQ(End().status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(End().status()), "worker_lost");
  EXPECT_THAT(Message(End().status()), ::testing::Not(HasSubstr("10.0.0"))) << "errors hold no addresses";
}

TEST_F(DispatcherTest, ATierThatFailsBeforeAnythingWasShownFallsToTheNext) {
  Generate(Fields("auto"));
  const Status stopping = WithReason(Unavailable("the worker is stopping"), "draining");
  cluster_.call(kNano, 0).SendText("ha");  // held back, so a client has seen nothing
  cluster_.call(kNano, 0).Fail(stopping);
  cluster_.call(kNano, 1).Fail(stopping);
  cluster_.call(kSmall).Answer("yes", kConfident);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "yes");
  EXPECT_EQ(End()->tier, "small");
}

TEST_F(DispatcherTest, ATierWithoutAReadyReplicaIsSkippedUnlessItIsTheLast) {
  cluster_.tier(kNano).replicas.clear();
  cluster_.tier(kSmall).replicas[0].state = ReplicaState::kSilent;
  Generate(Fields("auto"));
  cluster_.call(kBase).Answer("yes");
  EXPECT_TRUE(End().ok()) << End().status();
  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("small"));
  EXPECT_EQ(End().status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(End().status()), "no_capacity");
}

TEST_F(DispatcherTest, ATierWhoseModelNoManifestLetsInSaysSoAndIsSkipped) {
  ReplicaView& refused = cluster_.tier(kSmall).replicas[0];
  refused.state = ReplicaState::kRefused;
  refused.refusal = "manifest_failed";
  refused.last_error = "/etc/terrace/small.json: its verdict is failed";
  Generate(Fields("small"));
  EXPECT_EQ(End().status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(End().status()), "model_not_certified");
  EXPECT_THAT(Message(End().status()), HasSubstr("manifest_failed"));
  EXPECT_THAT(Message(End().status()), ::testing::Not(HasSubstr("/etc"))) << "errors hold no paths";
  EXPECT_EQ(Metric("terrace_router_rejections_total{reason=\"model_not_certified\"}"), 1);
  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("auto"));
  cluster_.call(kNano).Answer("a", kUnsure);
  cluster_.call(kBase).Answer("yes");
  EXPECT_TRUE(End().ok()) << End().status();
}

TEST_F(DispatcherTest, FailuresThatEveryReplicaWouldRepeatAreNotRetried) {
  const struct {
    Status worker;
    const char* reason;
  } cases[] = {
      {WithReason(Internal("NaN"), "numeric_error"), "numeric_error"},
      {WithReason(InvalidArgument("no"), "invalid_value"), "invalid_value"},
      {DeadlineExceeded("late"), "deadline_exceeded"},
  };
  for (const auto& c : cases) {
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields("base"));
    cluster_.call(kBase, 0).Fail(c.worker);
    EXPECT_EQ(Reason(End().status()), c.reason);
    EXPECT_TRUE(cluster_.replica(kBase, 1).calls.empty());
  }
}

TEST_F(DispatcherTest, AFullWorkerIsLikeALostOneAndThenOverloaded) {
  Generate(Fields("base"));
  const Status full = WithReason(ResourceExhausted("inbox full"), "overloaded");
  cluster_.call(kBase, 0).Fail(full);
  cluster_.call(kBase, 1).Fail(full);
  EXPECT_EQ(End().status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(End().status()), "overloaded");
}

TEST_F(DispatcherTest, AStopStringAcrossTokensCancelsTheCallAndEndsAsStop) {
  RequestFields fields = Fields("base");
  fields.stop = {"END"};
  Generate(std::move(fields));
  cluster_.call(kBase).Start(/*cached_tokens=*/3);
  cluster_.call(kBase).SendText("okE");
  EXPECT_EQ(sink_->text, "ok") << "what may be the stop string is held back";
  cluster_.call(kBase).SendText("NDmore");
  EXPECT_TRUE(cluster_.call(kBase).is_cancelled);
  cluster_.call(kBase).Fail(Cancelled("by us"));
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->end, AnswerEnd::kStop);
  EXPECT_EQ(End()->stop, "END");
  EXPECT_EQ(sink_->text, "ok");
  EXPECT_THAT(sink_->tokens, ElementsAre('o', 'k'));
  EXPECT_EQ(End()->usage, (TokenUsage{4, 3, 5})) << "tokens up to the match";
}

TEST_F(DispatcherTest, AStoppedAnswerOfAnEarlyTierStillPassesItsGate) {
  RequestFields fields = Fields("auto");
  fields.stop = {"!"};
  Generate(std::move(fields));
  cluster_.call(kNano).SendText("ab!", kConfident);
  cluster_.call(kNano).Fail(Cancelled("by us"));
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "ab");
  EXPECT_EQ(End()->tier, "nano");
}

TEST_F(DispatcherTest, AHeldBackStopPrefixIsShownWhenTheAnswerEndsWithoutTheStop) {
  RequestFields fields = Fields("base");
  fields.stop = {"END"};
  Generate(std::move(fields));
  cluster_.call(kBase).SendText("okEN");
  cluster_.call(kBase).Finish(AnswerEnd::kLength);
  EXPECT_EQ(sink_->text, "okEN");
  EXPECT_THAT(sink_->tokens, ElementsAre('o', 'k', 'E', 'N'));
}

TEST_F(DispatcherTest, AClientThatCancelsStopsTheWorker) {
  const auto cancel = Generate(Fields("base"));
  cluster_.call(kBase).SendText("a");
  cancel();
  EXPECT_TRUE(cluster_.call(kBase).is_cancelled);
  cluster_.call(kBase).SendText("b");
  EXPECT_EQ(sink_->text, "a");
  cluster_.call(kBase).Fail(Cancelled("by us"));
  EXPECT_EQ(End().status().code(), StatusCode::kCancelled);
  EXPECT_TRUE(cluster_.replica(kBase, 1).calls.empty());
  cancel();  // after the end: nothing
}

TEST_F(DispatcherTest, AClosedSinkStopsTheWorkerAlsoWhileTheAnswerIsHeldBack) {
  Generate(Fields("auto"));
  sink_->closed = true;
  cluster_.call(kNano).SendText("a");
  EXPECT_TRUE(cluster_.call(kNano).is_cancelled);
  cluster_.call(kNano).Fail(Cancelled("by us"));
  EXPECT_EQ(End().status().code(), StatusCode::kCancelled);
  EXPECT_TRUE(cluster_.replica(kSmall, 0).calls.empty());
}

TEST_F(DispatcherTest, WhatTheClientAbandonedIsCountedAndPricedAsDone) {
  const auto cancel = Generate(Fields("base"));
  cluster_.call(kBase).SendText("ab");
  cancel();
  cluster_.call(kBase).Fail(Cancelled("by us"));
  EXPECT_EQ(End().status().code(), StatusCode::kCancelled);
  ExpectMetered("base", {4, 0, 2}, (4 + 2) * 100 / 1e6);
  EXPECT_EQ(Metric("terrace_tier_attempts_total{result=\"abandoned\",tier=\"base\"}"), 1);

  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("nano"));
  cluster_.call(kNano).SendText("abc");
  cluster_.call(kNano).Fail(DeadlineExceeded("late"));
  EXPECT_EQ(Reason(End().status()), "deadline_exceeded");
  ExpectMetered("nano", {4, 0, 3}, (4 + 3) * 1 / 1e6);
  EXPECT_EQ(Metric("terrace_tier_attempts_total{result=\"abandoned\",tier=\"nano\"}"), 1);
}

TEST_F(DispatcherTest, AnAnswerAbandonedAsItEndedHasTheWorkersCount) {
  const auto cancel = Generate(Fields("base"));
  cluster_.call(kBase).SendText("a");
  cancel();
  cluster_.call(kBase).SendText("b");
  cluster_.call(kBase).Finish(AnswerEnd::kLength, /*cached_tokens=*/3);
  EXPECT_EQ(End().status().code(), StatusCode::kCancelled);
  ExpectMetered("base", {4, 3, 2}, (4 + 2) * 100 / 1e6);
}

TEST_F(DispatcherTest, WhatAWorkerFailedAtIsCountedAndCostsNothing) {
  Generate(Fields("base"));
  cluster_.call(kBase, 0).SendText("ab");
  cluster_.call(kBase, 0).Fail(WithReason(Internal("NaN"), "numeric_error"));
  EXPECT_EQ(Reason(End().status()), "numeric_error");
  ExpectMetered("base", {4, 0, 2}, 0);
  EXPECT_EQ(Metric("terrace_tier_attempts_total{result=\"failed\",tier=\"base\"}"), 1);

  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("small"));
  cluster_.call(kSmall).Fail(WithReason(ResourceExhausted("inbox full"), "overloaded"));
  EXPECT_EQ(Reason(End().status()), "overloaded");
  ExpectMetered("small", {}, 0);
}

TEST_F(DispatcherTest, AFailedAttemptIsCountedBesideTheOneThatAnswers) {
  Generate(Fields("auto"));
  cluster_.call(kNano, 0).SendText("ha");
  cluster_.call(kNano, 0).Fail(Unavailable("gone"));
  cluster_.call(kNano, 1).Answer("yes", kConfident);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "hayes");
  EXPECT_EQ(End()->usage, (TokenUsage{4, 0, 6}));
  EXPECT_DOUBLE_EQ(End()->price_usd, (4 + 6) * 1 / 1e6) << "as if nothing had happened";
  ASSERT_EQ(End()->attempts.size(), 2u);
  EXPECT_EQ(End()->attempts[0].usage, (TokenUsage{4, 0, 2}));
  EXPECT_EQ(End()->attempts[0].price_usd, 0);
  EXPECT_EQ(End()->attempts[1].usage, (TokenUsage{4, 0, 4})) << "what it did";
  EXPECT_EQ(End()->attempts[1].resumed_tokens, 2u);
  ExpectMetered("nano", {8, 0, 6}, (4 + 6) * 1 / 1e6);
}

TEST_F(DispatcherTest, AnAbandonedScoreIsPricedAndAFailedOneIsNot) {
  RequestFields fields = Fields("base", std::string("abc"));
  fields.api = ApiKind::kScore;
  const auto score = [&] { return dispatcher_->Score(*Request::Make(fields), [](const auto&) {}); };
  score()();
  cluster_.call(kBase).Fail(Cancelled("by us"));
  ExpectMetered("base", {3, 0, 0}, 3 * 100 / 1e6);
  score();
  cluster_.call(kBase).events->OnPromptScores({{'b', -1, {}}});
  cluster_.call(kBase).Fail(WithReason(Internal("NaN"), "numeric_error"));
  ExpectMetered("base", {6, 0, 0}, 3 * 100 / 1e6);
}

TEST_F(DispatcherTest, NothingIsStartedPastTheDeadline) {
  Generate(Fields("auto"));
  EXPECT_EQ(cluster_.call(kNano).spec.deadline, clock_.Now() + std::chrono::seconds(60));
  clock_.Advance(std::chrono::seconds(61));
  cluster_.call(kNano).Answer("a", kUnsure);  // would escalate
  EXPECT_EQ(End().status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Reason(End().status()), "deadline_exceeded");
  EXPECT_TRUE(cluster_.replica(kSmall, 0).calls.empty());
}

TEST_F(DispatcherTest, APromptThatDoesNotFitTheLastTierIsRefusedWithBothNumbersBeforeAnyCall) {
  RequestFields fields = Fields("auto", std::string(60, 'x'));
  fields.max_tokens = 5;
  Generate(std::move(fields));
  EXPECT_EQ(End().status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Reason(End().status()), "context_length_exceeded");
  EXPECT_THAT(Message(End().status()), ::testing::AllOf(HasSubstr("64"), HasSubstr("60"), HasSubstr("65")));
  EXPECT_TRUE(cluster_.replica(kNano, 0).calls.empty());
}

TEST_F(DispatcherTest, AnEarlierTierWhoseContextIsTooSmallIsSkipped) {
  cluster_.tier(kNano).context_length = 8;
  Generate(Fields("auto", std::string(20, 'x')));
  EXPECT_TRUE(cluster_.replica(kNano, 0).calls.empty());
  cluster_.call(kSmall).Answer("yes", kConfident);
  EXPECT_EQ(End()->tier, "small");
}

TEST_F(DispatcherTest, TheContextIsFullAtExactlyPromptPlusMaxTokens) {
  RequestFields fields = Fields("base", std::string(60, 'x'));
  fields.max_tokens = 4;
  Generate(std::move(fields));
  EXPECT_EQ(cluster_.call(kBase).spec.max_tokens, 4u);
  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("base", std::string(64, 'x')));  // leaves no token for the answer
  ASSERT_TRUE(sink_->end.has_value());
  EXPECT_EQ(Reason(sink_->end->status()), "context_length_exceeded");
}

TEST_F(DispatcherTest, TokenIdsOutsideTheVocabularyAreRefused) {
  RequestFields fields = Fields("base");
  fields.logit_bias = {{258, 1.0}};
  for (RequestFields bad : {Fields("base", std::vector<TokenId>{1, 258}), fields}) {
    sink_ = std::make_shared<FakeSink>();
    Generate(std::move(bad));
    EXPECT_EQ(Reason(End().status()), "invalid_value");
  }
}

TEST_F(DispatcherTest, APromptOfTokensIsSentAsItWasWrittenWithoutACopy) {
  const auto request = *Request::Make(Fields("base", std::vector<TokenId>{97, 98, 99}));
  dispatcher_->Generate(request, sink_);
  FakeCall& call = cluster_.call(kBase);
  EXPECT_EQ(call.spec.prompt.get(), std::get_if<std::vector<TokenId>>(&request->input()));
  call.Answer("x");
  ASSERT_TRUE(End().ok());
  EXPECT_EQ(End()->usage.prompt_tokens, 3u);
}

TEST_F(DispatcherTest, ChatGoesThroughTheTiersTemplate) {
  Generate(Fields("base", std::vector<ChatMessage>{{"user", "hi"}}));
  EXPECT_EQ(std::string(cluster_.call(kBase).spec.prompt->begin(), cluster_.call(kBase).spec.prompt->end()),
            "hi|");
}

RequestFields WithTool(RequestFields fields) {
  fields.tools = {{.name = "now"}};
  return fields;
}
const std::vector<ChatMessage> kHello = {{"user", "hi"}};

TEST_F(DispatcherTest, ToolsGoThroughTheTiersTemplateAndTheirCallsAreTheEnd) {
  cluster_.tier(kBase).text = ByteTextWithTools();
  Generate(WithTool(Fields("base", kHello)));
  const auto& prompt = *cluster_.call(kBase).spec.prompt;
  EXPECT_EQ(std::string(prompt.begin(), prompt.end()), "now|hi|>");
  cluster_.call(kBase).Answer("<tool_call>{\"name\":\"now\"}</tool_call>");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->end, AnswerEnd::kToolCalls);
  EXPECT_EQ(sink_->text, "");
  ASSERT_EQ(sink_->choices[0].tool_calls.size(), 1u);
  EXPECT_EQ(sink_->choices[0].tool_calls[0].arguments, "{}");
}

TEST_F(DispatcherTest, AnAnswerToToolsWithoutACallEndsAsAnyOther) {
  cluster_.tier(kBase).text = ByteTextWithTools();
  Generate(WithTool(Fields("base", kHello)));
  cluster_.call(kBase).Answer("<tool_call>{\"name\":\"rm\"}</tool_call>");
  EXPECT_EQ(End()->end, AnswerEnd::kStop);
  EXPECT_EQ(sink_->text, "<tool_call>{\"name\":\"rm\"}</tool_call>");
}

TEST_F(DispatcherTest, TheCallThatEndsAnAnswerStopsTheWorker) {
  cluster_.tier(kBase).text = ByteTextWithTools();
  RequestFields fields = WithTool(Fields("base", kHello));
  fields.parallel_tool_calls = false;
  Generate(fields);
  FakeCall& call = cluster_.call(kBase);
  call.SendText("<tool_call>{\"name\":\"now\"}");
  EXPECT_TRUE(call.is_cancelled);
  call.SendText("more");
  call.Fail(Cancelled("by us"));
  EXPECT_EQ(End()->end, AnswerEnd::kToolCalls);
  EXPECT_EQ(sink_->choices[0].tool_calls.size(), 1u);
}

TEST_F(DispatcherTest, CallsThatAreHeldBackComeWhenTheGateAccepts) {
  for (const size_t tier : {kNano, kSmall, kBase}) cluster_.tier(tier).text = ByteTextWithTools();
  Generate(WithTool(Fields("auto", kHello)));
  cluster_.call(kNano).Answer("a<tool_call>{\"name\":\"now\"}", kUnsure);
  EXPECT_TRUE(sink_->choices[0].tool_calls.empty()) << "of an answer that is thrown away";
  cluster_.call(kSmall).Answer("b<tool_call>{\"name\":\"now\"}", kConfident);
  EXPECT_EQ(End()->end, AnswerEnd::kToolCalls);
  EXPECT_EQ(sink_->text, "b");
  EXPECT_EQ(sink_->choices[0].tool_calls.size(), 1u);
}

TEST_F(DispatcherTest, ATemplateWithoutToolsRefusesThem) {
  const auto refusal = [&](RequestFields fields) {
    sink_ = std::make_shared<FakeSink>();
    Generate(std::move(fields));
    EXPECT_EQ(Reason(End().status()), "unsupported_parameter");
    return Param(End().status());
  };
  EXPECT_EQ(refusal(WithTool(Fields("base", kHello))), "tools");
  const ChatMessage call = {"assistant", "", {{"i", "now", "{}"}}}, result = {"tool", "x", {}, "i"};
  EXPECT_EQ(refusal(Fields("base", std::vector<ChatMessage>{call, result})), "messages");
  EXPECT_EQ(refusal(Fields("base", std::vector<ChatMessage>{result})), "messages");
  EXPECT_EQ(Param(Tokenize(WithTool(Fields("base", kHello))).status()), "tools");
}

TEST_F(DispatcherTest, AChatsPromptMayEndWithTheChat) {
  cluster_.tier(kBase).text = ByteTextWithTools();
  RequestFields fields = Fields("base", kHello);
  fields.add_generation_prompt = false;
  EXPECT_EQ(Tokenize(fields)->tokens.back(), '|');
}

TEST_F(DispatcherTest, APromptIsScoredWithoutAnAnswer) {
  RequestFields fields = Fields("base", std::string(64, 'p'));  // as long as the context
  fields.max_tokens = 0;
  fields.prompt_logprobs = 1;
  fields.echo = true;
  Generate(fields);
  FakeCall& call = cluster_.call(kBase);
  EXPECT_TRUE(call.spec.score_prompt);
  EXPECT_EQ(call.spec.max_tokens, 0u) << "none, beside scores";
  call.events->OnPromptScores(std::vector<WorkerToken>(63, {'p', -1, {}}));
  call.Finish(AnswerEnd::kLength);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->end, AnswerEnd::kLength);
  EXPECT_EQ(sink_->text, std::string(64, 'p'));
  EXPECT_EQ(sink_->prompt_tokens.size(), 64u);
  EXPECT_EQ(End()->usage, (TokenUsage{64, 0, 0}));
}

TEST_F(DispatcherTest, ScoresAloneThatAreMissingAreTheWorkersFaultAndAPolicyHasNone) {
  RequestFields fields = Fields("small");
  fields.max_tokens = 0;
  fields.prompt_logprobs = 0;
  Generate(fields);
  cluster_.call(kSmall).Finish(AnswerEnd::kLength);
  EXPECT_EQ(Reason(End().status()), "worker_protocol");
  const auto refusal = [&](const char* model, const char* prompt) {
    sink_ = std::make_shared<FakeSink>();
    fields.model = model;
    fields.input = std::string(prompt);
    Generate(fields);
    return Param(End().status());
  };
  EXPECT_EQ(refusal("auto", "ab"), "model");
  EXPECT_EQ(refusal("small", "a"), "prompt") << "the first token has no score";
}

TEST_F(DispatcherTest, ATokenThatDoesNotExistIsAFailedAttempt) {
  Generate(Fields("base"));
  cluster_.call(kBase, 0).SendToken(9999);
  EXPECT_TRUE(cluster_.call(kBase, 0).is_cancelled);
  cluster_.call(kBase, 0).Fail(Cancelled("by us"));
  cluster_.call(kBase, 1).Answer("ok");
  EXPECT_TRUE(End().ok()) << End().status();
}

TEST_F(DispatcherTest, UnknownModelsAndFullRoutersAreRefusedAtOnce) {
  Generate(Fields("absent"));
  EXPECT_EQ(Reason(End().status()), "model_not_found");
  EXPECT_THAT(metrics_.Render(), HasSubstr("model=\"unknown\"")) << "client text is no label";
  std::vector<Dispatcher::CancelCall> cancels;
  for (int i = 0; i < 4 + 2; ++i) {  // 4 run, 2 wait
    sink_ = std::make_shared<FakeSink>();
    cancels.push_back(Generate(Fields("base")));
  }
  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("base"));
  ASSERT_TRUE(sink_->end.has_value());
  EXPECT_EQ(Reason(sink_->end->status()), "overloaded");
  cancels[4]();
  cancels[5]();
}

TEST_F(DispatcherTest, TimesAreThoseOfTheFirstTokenShownAndOfTheEnd) {
  Generate(Fields("auto"));
  clock_.Advance(std::chrono::seconds(1));
  cluster_.call(kNano).SendText("a", kConfident);
  clock_.Advance(std::chrono::seconds(2));
  cluster_.call(kNano).Finish();
  EXPECT_DOUBLE_EQ(End()->time_to_first_token_seconds, 3) << "held back until accepted";
  EXPECT_DOUBLE_EQ(End()->total_seconds, 3);
  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("base"));
  clock_.Advance(std::chrono::seconds(1));
  cluster_.call(kBase).SendText("a");
  clock_.Advance(std::chrono::seconds(2));
  cluster_.call(kBase).Finish();
  EXPECT_DOUBLE_EQ(End()->time_to_first_token_seconds, 1);
  EXPECT_DOUBLE_EQ(End()->total_seconds, 3);
}

TEST_F(DispatcherTest, ScoresOfAllPromptTokensButTheFirst) {
  std::optional<StatusOr<ScoreAnswer>> scored;
  RequestFields fields = Fields("base", std::string("abc"));
  fields.api = ApiKind::kScore;
  dispatcher_->Score(*Request::Make(fields),
                     [&](StatusOr<ScoreAnswer> answer) { scored = std::move(answer); });
  FakeCall& call = cluster_.call(kBase);
  EXPECT_TRUE(call.spec.score_prompt);
  call.events->OnPromptScores({{'b', -1, {}}});
  call.events->OnPromptScores({{'c', -2, {}}});
  call.Finish();
  ASSERT_TRUE(scored.has_value() && scored->ok());
  EXPECT_EQ((*scored)->first_token, 'a');
  EXPECT_EQ((*scored)->tokens.size(), 2u);
  EXPECT_DOUBLE_EQ((*scored)->sum_logprob, -3);
  EXPECT_DOUBLE_EQ((*scored)->price_usd, 3 * 100 / 1e6);
}

TEST_F(DispatcherTest, ScoresOfOtherTokensAreTheWorkersErrorAndAPolicyCannotScore) {
  std::optional<StatusOr<ScoreAnswer>> scored;
  const auto on_score = [&](StatusOr<ScoreAnswer> answer) { scored = std::move(answer); };
  RequestFields fields = Fields("small", std::string("abc"));
  fields.api = ApiKind::kScore;
  dispatcher_->Score(*Request::Make(fields), on_score);
  cluster_.call(kSmall).events->OnPromptScores({{'z', -1, {}}});
  EXPECT_TRUE(cluster_.call(kSmall).is_cancelled);
  cluster_.call(kSmall).Fail(Cancelled("by us"));
  ASSERT_TRUE(scored.has_value());
  EXPECT_EQ(Reason(scored->status()), "worker_protocol");
  fields.model = "auto";
  dispatcher_->Score(*Request::Make(fields), on_score);
  EXPECT_EQ(Param(scored->status()), "model");
}

TEST_F(DispatcherTest, ModelsArePoliciesAndTiersWithWhatTheClusterKnows) {
  cluster_.tier(kNano).replicas.clear();
  const auto models = dispatcher_->ListModels(*DefaultTenant());
  ASSERT_EQ(models.size(), 4u);
  EXPECT_EQ(models[0].id, "auto");
  EXPECT_THAT(models[0].tiers, ElementsAre("nano", "small", "base"));
  EXPECT_TRUE(models[0].is_ready);
  EXPECT_EQ(models[1].id, "nano");
  EXPECT_FALSE(models[1].is_ready);
  EXPECT_EQ(models[3].context_length, 64u);
  EXPECT_DOUBLE_EQ(models[3].price.usd_per_million_prompt_tokens, 100);
}

TEST_F(DispatcherTest, ARequestThatTheRouterEndsIsToldSoAndCostsNothing) {
  Generate(Fields("base"));
  cluster_.call(kBase).SendText("ab");
  dispatcher_->EndRequests();
  EXPECT_TRUE(cluster_.call(kBase).is_cancelled);
  cluster_.call(kBase).SendText("c");  // was on its way
  cluster_.call(kBase).Fail(Cancelled("by us"));
  EXPECT_EQ(End().status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(End().status()), "draining");
  EXPECT_EQ(sink_->text, "ab");
  ExpectMetered("base", {4, 0, 2}, 0);
  EXPECT_EQ(Metric("terrace_requests_total{api=\"generate\",finish_reason=\"none\",model=\"base\",outcome="
                   "\"unavailable\","
                   "tier=\"base\"}"),
            1);
  EXPECT_THAT(cluster_.replica(kBase, 0).observer->ends(), ::testing::IsEmpty())
      << "no fault of the replica's";
}

TEST_F(DispatcherTest, SoIsOneThatWaitsForAReplicaAndOneThatWantsScores) {
  Generate(Fields("small"));
  cluster_.call(kSmall).SendText("ab");
  cluster_.tier(kSmall).replicas[0].state = ReplicaState::kConnecting;
  cluster_.call(kSmall).Fail(Unavailable("gone"));
  RequestFields fields = Fields("base", std::string("abc"));
  fields.api = ApiKind::kScore;
  std::optional<StatusOr<ScoreAnswer>> scored;
  dispatcher_->Score(*Request::Make(fields),
                     [&](StatusOr<ScoreAnswer> answer) { scored = std::move(answer); });
  dispatcher_->EndRequests();
  cluster_.call(kBase).Fail(Cancelled("by us"));
  ASSERT_TRUE(scored.has_value());
  EXPECT_EQ(Reason(scored->status()), "draining");
  EXPECT_FALSE(sink_->end.has_value()) << "the housekeeper ends it";
  dispatcher_->Housekeep();
  EXPECT_EQ(Reason(End().status()), "draining");
  EXPECT_EQ(Metric("terrace_cost_usd_total{tier=\"base\"}"), 0);
}

TEST_F(DispatcherTest, WhatBeginsAfterTheEndOfAllRequestsEndsToo) {
  dispatcher_->EndRequests();
  Generate(Fields("base"));
  EXPECT_TRUE(cluster_.call(kBase).is_cancelled);
  cluster_.call(kBase).Fail(Cancelled("by us"));
  EXPECT_EQ(Reason(End().status()), "draining");
}

TEST_F(DispatcherTest, AClientThatIsGoneIsNotToldOfTheRoutersEnd) {
  Generate(Fields("base"));
  cluster_.call(kBase).SendText("ab");
  sink_->closed = true;
  dispatcher_->EndRequests();
  cluster_.call(kBase).Fail(Cancelled("by us"));
  EXPECT_EQ(Reason(End().status()), "client_closed");
}

TEST_F(DispatcherTest, WhatIsOverIsEndedNoMore) {
  Generate(Fields("base"));
  cluster_.call(kBase).Answer("ok");
  dispatcher_->Housekeep();
  dispatcher_->EndRequests();
  EXPECT_TRUE(End().ok()) << End().status();
}

// Five replicas of nano and of base.
class RetryTest : public DispatcherTest {
 protected:
  RetryTest() { Use({}); }
  void Use(const RetryOptions& retries) {
    dispatcher_ = MakeDispatcher({wide_, *catalog_, balancer_, admission_, recorder_, clock_, 7, retries});
  }
  // A request that fails at the first replica it asks, and what came of it.
  const StatusOr<AnswerSummary>& FailOnce(const std::string& model, size_t tier) {
    sink_ = std::make_shared<FakeSink>();
    const size_t retried = wide_.replica(tier, 1).calls.size();
    Generate(Fields(model));
    wide_.call(tier, 0).Fail(Unavailable("gone"));
    if (wide_.replica(tier, 1).calls.size() > retried) wide_.call(tier, 1).Answer("ok", kConfident);
    return End();
  }
  double Retries(const std::string& tier, const std::string& reason) const {
    return Metric("terrace_router_retries_total{reason=\"" + reason + "\",tier=\"" + tier + "\"}");
  }

  FakeCluster wide_{
      std::array<FakeCluster::TierSpec, 3>{{{"nano", 5, 64}, {"small", 1, 64}, {"base", 5, 64}}}};
};

TEST_F(RetryTest, SoManyReplicasOfATierAreTriedAndNoneTwice) {
  for (const uint32_t attempts : {1u, 3u, 4u}) {
    Use({.max_attempts = attempts});
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields("base"));
    for (uint32_t i = 0; i < attempts; ++i) {
      EXPECT_FALSE(sink_->end.has_value());
      wide_.call(kBase, i).Fail(WithReason(Unavailable("refused"), kUnreachedReason));
    }
    EXPECT_EQ(Reason(End().status()), "worker_lost");
    EXPECT_TRUE(wide_.replica(kBase, attempts).calls.empty());
  }
  EXPECT_EQ(Retries("base", "unavailable"), 0 + 2 + 3);
}

TEST_F(RetryTest, NoneIsTriedTwiceBeforeTheFirstTokenHoweverLongTheOthersTake) {
  Use({.max_attempts = 64});
  Generate(Fields("base"));
  for (size_t i = 0; i < 5; ++i) {
    ASSERT_EQ(wide_.replica(kBase, i).calls.size(), 1u) << i;
    EXPECT_FALSE(sink_->end.has_value());
    clock_.Advance(2 * Failover::kRest);
    wide_.call(kBase, i).Fail(WithReason(Unavailable("refused"), kUnreachedReason));
  }
  EXPECT_EQ(Reason(End().status()), "worker_lost");
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(wide_.replica(kBase, i).calls.size(), 1u) << i;
}

TEST_F(RetryTest, ScoresAreTriedAsOften) {
  std::optional<StatusOr<ScoreAnswer>> scored;
  RequestFields fields = Fields("base", std::string("abc"));
  fields.api = ApiKind::kScore;
  dispatcher_->Score(*Request::Make(fields),
                     [&](StatusOr<ScoreAnswer> answer) { scored = std::move(answer); });
  for (size_t i = 0; i < 3; ++i)
    wide_.call(kBase, i).Fail(WithReason(ResourceExhausted("full"), "overloaded"));
  ASSERT_TRUE(scored.has_value());
  EXPECT_EQ(Reason(scored->status()), "overloaded");
  EXPECT_TRUE(wide_.replica(kBase, 3).calls.empty());
  EXPECT_EQ(Retries("base", "overloaded"), 2);
}

TEST_F(RetryTest, WithoutBudgetAFailureIsTheEndAtItsTier) {
  for (uint64_t i = 0; i < RetryBudget::kFloor; ++i) EXPECT_TRUE(FailOnce("base", kBase).ok()) << i;
  EXPECT_EQ(Reason(FailOnce("base", kBase).status()), "worker_lost");
  EXPECT_EQ(Retries("base", "unavailable"), RetryBudget::kFloor);
  EXPECT_EQ(Metric("terrace_router_retries_refused_total{tier=\"base\"}"), 1);
  EXPECT_TRUE(FailOnce("nano", kNano).ok()) << "each tier has its own";
  clock_.Advance(std::chrono::seconds(RetryBudget::kWindowSeconds));
  EXPECT_TRUE(FailOnce("base", kBase).ok());
}

TEST_F(RetryTest, WithoutBudgetTheNextTierAnswers) {
  for (uint64_t i = 0; i < RetryBudget::kFloor; ++i) EXPECT_TRUE(FailOnce("nano", kNano).ok()) << i;
  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("auto"));
  wide_.call(kNano, 0).Fail(Unavailable("gone"));
  wide_.call(kSmall).Answer("yes", kConfident);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->tier, "small");
}

TEST_F(RetryTest, TheClusterLearnsHowEveryCallEnds) {
  const auto ends = [&](size_t replica) { return wide_.replica(kBase, replica).observer->ends(); };
  EXPECT_TRUE(FailOnce("base", kBase).ok());
  EXPECT_THAT(ends(0), ElementsAre(StatusCode::kUnavailable));
  EXPECT_THAT(ends(1), ElementsAre(StatusCode::kOk));

  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("base"));
  wide_.call(kBase, 0).SendToken(9999);  // there is no such token
  wide_.call(kBase, 0).Fail(Cancelled("by us"));
  EXPECT_THAT(ends(0), ElementsAre(StatusCode::kUnavailable, StatusCode::kInternal));
  wide_.call(kBase, 1).Fail(WithReason(InvalidArgument("no"), "invalid_value"));
  EXPECT_THAT(ends(1), ElementsAre(StatusCode::kOk, StatusCode::kInvalidArgument));

  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("base"))();
  wide_.call(kBase, 0).Fail(Cancelled("by us"));
  EXPECT_EQ(ends(0).size(), 2u) << "what the client cancels says nothing";
}

TEST_F(RetryTest, AReplicaThatStartsSlowlyIsPickedLessOften) {
  wide_.tier(kBase).replicas[0].weight = 0.1f;  // FirstBalancer picks it whenever it may
  for (int i = 0; i < 400; ++i) {
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields("base"));
    const size_t picked = wide_.replica(kBase, 1).calls.empty() || wide_.call(kBase, 1).is_done ? 0 : 1;
    wide_.call(kBase, picked).Answer("ok");
  }
  EXPECT_NEAR(static_cast<double>(wide_.replica(kBase, 0).calls.size()), 40, 20);
}

class PrefixTest : public DispatcherTest {
 protected:
  PrefixTest() {
    dispatcher_ = MakeDispatcher({cluster_, *catalog_, *by_prefix_, admission_, recorder_, clock_, 7});
  }

  // An answer of base's `replica` to `prompt`, of which the worker says it had `cached` tokens.
  const AnswerAttempt& Ask(const std::string& prompt, size_t replica, uint32_t cached,
                           const std::string& salt = "") {
    sink_ = std::make_shared<FakeSink>();
    RequestFields fields = Fields("base", prompt);
    fields.cache_salt = salt;
    const size_t before = cluster_.replica(kBase, replica).calls.size();
    Generate(std::move(fields));
    EXPECT_EQ(cluster_.replica(kBase, replica).calls.size(), before + 1) << "asked another";
    cluster_.call(kBase, replica).SendText("x");
    cluster_.call(kBase, replica).Finish(AnswerEnd::kLength, cached);
    return End()->attempts.back();
  }
  static std::vector<TokenId> Tokens(const std::string& text) { return ByteTokenizer().Encode(text); }

  const std::unique_ptr<Balancer> by_prefix_ = MakeBalancer(BalancePolicy::kPrefix);
};

TEST_F(PrefixTest, APromptGoesWhereItsBeginningIsCached) {
  const std::string beginning(32, 'b');
  cluster_.Cache(kBase, 1, Tokens(beginning));
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(Ask(beginning + std::to_string(i), 1, 32).predicted_cached_tokens, 32u)
        << "whoever's turn it is";
  }
  EXPECT_EQ(Metric("terrace_prefix_predicted_tokens_total{tier=\"base\"}"), 4 * 32);
  EXPECT_EQ(Metric("terrace_router_picks_total{result=\"cached\",tier=\"base\"}"), 4);
  EXPECT_EQ(Metric("terrace_router_pick_seconds_count{tier=\"base\"}"), 4);
  EXPECT_EQ(Metric("terrace_prefix_error_tokens_total{direction=\"over\",tier=\"base\"}"), 0);
  EXPECT_EQ(Metric("terrace_prefix_error_tokens_total{direction=\"under\",tier=\"base\"}"), 0);
  Ask(beginning + "4", 1, 16);  // a block was evicted meanwhile
  Ask(beginning + "5", 1, 33);  // and here rows of the next one fit too
  EXPECT_EQ(Metric("terrace_prefix_error_tokens_total{direction=\"over\",tier=\"base\"}"), 16);
  EXPECT_EQ(Metric("terrace_prefix_error_tokens_total{direction=\"under\",tier=\"base\"}"), 1);
}

TEST_F(PrefixTest, ATokenIsLeftToBeComputed) {
  const std::string prompt(32, 'b');
  cluster_.Cache(kBase, 0, Tokens(prompt));
  EXPECT_EQ(Ask(prompt, 0, 31).predicted_cached_tokens, 16u) << "not the block with the last token";
}

TEST_F(PrefixTest, RequestsWithOneBeginningThatArriveTogetherAreKeptTogether) {
  cluster_.tier(kBase).context_length = 4096;
  const std::string beginning(1024, 'b');
  for (int i = 0; i < 3; ++i) {
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields("base", beginning + std::to_string(i)));
  }
  EXPECT_EQ(cluster_.replica(kBase, 0).calls.size(), 3u);
  EXPECT_TRUE(cluster_.replica(kBase, 1).calls.empty());
  sink_ = std::make_shared<FakeSink>();
  Generate(Fields("base", std::string(1024, 'c')));
  EXPECT_EQ(cluster_.replica(kBase, 1).calls.size(), 1u);
}

TEST_F(PrefixTest, SaltsKeepPrefixesApart) {
  const std::string prompt(40, 'b');
  cluster_.Cache(kBase, 1, Tokens(prompt), "tenant");
  EXPECT_EQ(Ask(prompt, 1, 32, "tenant").predicted_cached_tokens, 32u);
  EXPECT_EQ(Ask(prompt, 1, 0, "another").predicted_cached_tokens, 0u) << "its turn";
  EXPECT_EQ(Ask(prompt, 0, 0).predicted_cached_tokens, 0u) << "the other's";
}

TEST_F(PrefixTest, OwnRequestsCountBeforeTheWorkerReportsThem) {
  const auto& in_flight = *cluster_.tier(kBase).replicas[0].in_flight;
  Generate(Fields("base", std::string(40, 'c')));
  EXPECT_EQ(in_flight.requests, 1u);
  EXPECT_EQ(in_flight.prompt_tokens, 40u);
  cluster_.Cache(kBase, 0, Tokens(std::string(48, 'd')));
  sink_ = std::make_shared<FakeSink>();  // of another client
  Generate(Fields("base", std::string(48, 'd') + "e"));
  EXPECT_EQ(cluster_.replica(kBase, 1).calls.size(), 1u)
      << "49 tokens are less than 1, 40 that wait and a sequence";
  cluster_.call(kBase, 1).Finish();
  cluster_.call(kBase, 0).SendText("x");
  EXPECT_EQ(in_flight.prompt_tokens, 0u) << "the prompt is computed";
  EXPECT_EQ(in_flight.requests, 1u);
  cluster_.call(kBase, 0).Finish();
  EXPECT_EQ(in_flight.requests, 0u);
  EXPECT_EQ(cluster_.tier(kBase).replicas[1].in_flight->requests, 0u);
}

// A report stands for a quarter of a second, in which what it counted of this router's own has long ended.
TEST_F(PrefixTest, WhatAReportToldOfOwnRequestsDoesNotCountOnceTheyHaveEnded) {
  const std::string beginning(320, 'b');
  cluster_.tier(kBase).context_length = 4096;
  cluster_.Cache(kBase, 1, Tokens(beginning));
  ReplicaView& replica = cluster_.tier(kBase).replicas[1];
  {
    const InFlightLease lease(replica.in_flight, 640);
    replica.load = {.running_sequences = 1, .waiting_prompt_tokens = 700};
    replica.others = LoadOfOthers(replica.load, *replica.in_flight);
    EXPECT_EQ(replica.others.sequences, 0u);
    EXPECT_EQ(replica.others.prompt_tokens, 60u) << "of another router";
  }
  Ask(beginning + "c", 1, 320);
}

TEST_F(DispatcherTest, TokenizeUsesTheTiersTokenizer) {
  const auto tokenized = Tokenize(Fields("auto", std::string("ab")), true);
  ASSERT_TRUE(tokenized.ok()) << tokenized.status();
  EXPECT_THAT(tokenized->tokens, ElementsAre('a', 'b'));
  EXPECT_THAT(tokenized->token_bytes, ElementsAre("a", "b"));
  EXPECT_EQ(tokenized->context_length, 64u);
  EXPECT_TRUE(Tokenize(Fields("auto"))->token_bytes.empty());
  cluster_.tier(kNano).text = nullptr;
  EXPECT_EQ(Reason(Tokenize(Fields("nano")).status()), "no_capacity");
}

TEST_F(DispatcherTest, TokensBecomeTextAgain) {
  const auto detokenize = [&](std::vector<TokenId> tokens) {
    return Detokenize(Fields("base", std::move(tokens)));
  };
  EXPECT_EQ(*detokenize({'h', 0xc3, 0xa9}), "h\xc3\xa9");
  EXPECT_EQ(*detokenize({'h', 0xc3}), "h\xEF\xBF\xBD") << "half a character";
  EXPECT_EQ(Param(detokenize({'h', 9999}).status()), "tokens") << "there is no such token";
  EXPECT_EQ(Metric("terrace_requests_total{api=\"tokenize\",finish_reason=\"none\",model=\"base\",outcome="
                   "\"ok\",tier=\"none\"}"),
            2);
}

TEST_F(DispatcherTest, WhatIsTokenizedIsBounded) {
  const size_t limit = size_t{1} << 20;
  const auto error = [&](RequestInput input) {
    const bool is_tokens = std::holds_alternative<std::vector<TokenId>>(input);
    RequestFields fields = Fields("base", std::move(input));
    fields.api = ApiKind::kTokenize;
    return Param(is_tokens ? Detokenize(fields).status() : Tokenize(fields).status());
  };
  EXPECT_EQ(error(std::string(limit, 'x')), "");
  EXPECT_EQ(error(std::string(limit + 1, 'x')), "prompt");
  EXPECT_EQ(error(std::vector<ChatMessage>(2, {"user", std::string(limit / 2 + 1, 'x')})), "messages");
  EXPECT_EQ(error(std::vector<TokenId>(1 << 17, 'x')), "");
  EXPECT_EQ(error(std::vector<TokenId>((1 << 17) + 1, 'x')), "tokens");
}

TEST_F(DispatcherTest, ARequestWaitsForAPlaceAtItsTierAndIsThenLikeAnyOther) {
  admission_.SetPlaces(std::vector<uint32_t>{1, 1, 1});
  Generate(Fields("base"));
  const auto second = std::make_shared<FakeSink>();
  dispatcher_->Generate(*Request::Make(Fields("base")), second);
  EXPECT_EQ(cluster_.replica(kBase, 0).calls.size(), 1u);
  EXPECT_EQ(admission_.queued(kBase), 1u);
  cluster_.call(kBase).Answer("first");
  EXPECT_EQ(cluster_.replica(kBase, 0).calls.size(), 2u);
  cluster_.call(kBase).Answer("second");
  EXPECT_EQ(second->text, "second");
  EXPECT_TRUE(End().ok());
}

TEST_F(DispatcherTest, AnEscalatedAnswerLeavesItsPlaceToTheNext) {
  admission_.SetPlaces(std::vector<uint32_t>{1, 1, 1});
  Generate(Fields("auto"));
  const auto second = std::make_shared<FakeSink>();
  dispatcher_->Generate(*Request::Make(Fields("nano")), second);
  EXPECT_EQ(admission_.queued(kNano), 1u);
  cluster_.call(kNano).Answer("hm", kUnsure);
  EXPECT_EQ(admission_.queued(kNano), 0u);
  cluster_.call(kNano).Answer("second");
  EXPECT_EQ(second->text, "second");
  cluster_.call(kSmall).Answer("yes", kConfident);
  EXPECT_EQ(End()->tier, "small");
}

TEST_F(DispatcherTest, AClientThatLeavesWhileItWaitsIsGoneWithoutAnyCall) {
  admission_.SetPlaces(std::vector<uint32_t>{1, 1, 1});
  Generate(Fields("base"));
  const auto second = std::make_shared<FakeSink>();
  const auto cancel = dispatcher_->Generate(*Request::Make(Fields("base")), second);
  cancel();
  cancel();
  ASSERT_TRUE(second->end.has_value());
  EXPECT_EQ(second->end->status().code(), StatusCode::kCancelled);
  cluster_.call(kBase).Answer("x");
  EXPECT_TRUE(End().ok());
  EXPECT_EQ(cluster_.replica(kBase, 0).calls.size(), 1u);
}

TEST_F(DispatcherTest, ATenantUsesTheModelsItMay) {
  RequestFields fields = Fields("base");
  fields.tenant = std::make_shared<Tenant>(Tenant{.name = "acme", .models = {"nano"}});
  Generate(fields);
  EXPECT_EQ(End().status().code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(Reason(End().status()), "model_not_allowed");
  const auto models = dispatcher_->ListModels(*fields.tenant);
  ASSERT_EQ(models.size(), 1u);
  EXPECT_EQ(models[0].id, "nano");
  EXPECT_EQ(Metric("terrace_tenant_requests_total{outcome=\"client_error\",tenant=\"acme\"}"), 1);
}

TEST_F(DispatcherTest, ATenantPaysForTheTokensOfItsAnswers) {
  RequestFields fields = Fields("nano");
  fields.tenant = std::make_shared<Tenant>(Tenant{.name = "acme", .tokens_per_minute = 8});
  Generate(fields);
  cluster_.call(kNano).Answer("12345678");  // 4 + 9 tokens
  ASSERT_TRUE(End().ok());
  EXPECT_EQ(Metric("terrace_tenant_tokens_total{direction=\"prompt\",tenant=\"acme\"}"), 4);
  EXPECT_EQ(Metric("terrace_tenant_tokens_total{direction=\"completion\",tenant=\"acme\"}"), 9);
  sink_ = std::make_shared<FakeSink>();
  Generate(fields);
  EXPECT_EQ(Reason(End().status()), "rate_limit_exceeded");
  EXPECT_EQ(Metric("terrace_router_rejections_total{reason=\"rate_limit_exceeded\"}"), 1);
  EXPECT_EQ(Metric("terrace_tenant_rejections_total{reason=\"rate_limit_exceeded\",tenant=\"acme\"}"), 1);
}

TEST_F(DispatcherTest, ARequestOfAConnectionThatResetsTooMuchIsARejection) {
  dispatcher_->RecordRefused(
      {.request_id = "r", .status = WithReason(ResourceExhausted("too many"), kTooManyResets)});
  EXPECT_EQ(Metric("terrace_router_rejections_total{reason=\"too_many_resets\"}"), 1);
}

TEST_F(DispatcherTest, WorkersAreToldTheTrace) {
  RequestFields fields = Fields("nano");
  fields.trace = *ParseTraceParent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
  fields.trace.state = "congo=1";
  Generate(fields);
  EXPECT_EQ(cluster_.call(kNano).spec.traceparent, fields.trace.Header());
  EXPECT_EQ(cluster_.call(kNano).spec.tracestate, "congo=1");
  cluster_.call(kNano).Answer("x");
}

}  // namespace
}  // namespace terrace
