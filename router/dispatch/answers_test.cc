#include "router/dispatch/answers.h"

#include <set>
#include <thread>

#include "router/dispatch/testing_dispatcher.h"

namespace terrace {
namespace {

using ::testing::Each;

// Several answers to one request, drawn from the fake workers of DispatcherTest.
class AnswersTest : public DispatcherTest {
 protected:
  RequestFields Several(std::string model, int64_t choices, std::optional<int64_t> best_of = {}) {
    RequestFields fields = Fields(std::move(model));
    fields.choices = choices;
    fields.best_of = best_of;
    return fields;
  }
  // What one replica was asked, in order.
  FakeCall& Call(size_t tier, size_t number, size_t replica = 0) {
    const auto& calls = cluster_.replica(tier, replica).calls;
    CHECK(number < calls.size(), "only ", calls.size(), " calls");
    return *calls[number];
  }
  size_t Calls(size_t tier, size_t replica = 0) { return cluster_.replica(tier, replica).calls.size(); }

  FakeSink::Choice& Choice(uint32_t choice) { return sink_->choices[choice]; }
};

TEST_F(AnswersTest, EachAnswerIsACallWithASeedOfItsOwnAndTheFirstIsTheOnlyAnswersCall) {
  RequestFields fields = Several("base", 3);
  fields.seed = 42;
  fields.priority = 7;
  fields.cache_salt = "tenant";
  Generate(fields);
  ASSERT_EQ(Calls(kBase), 3u);
  std::set<uint64_t> seeds;
  for (size_t i = 0; i < 3; ++i) {
    const ExecuteSpec& spec = Call(kBase, i).spec;
    seeds.insert(*spec.sampling.seed);
    EXPECT_EQ(spec.prompt, Call(kBase, 0).spec.prompt) << "encoded once";
    EXPECT_EQ(spec.priority, 7);
    EXPECT_EQ(spec.cache_salt, "tenant");
    EXPECT_FALSE(spec.score_prompt);
  }
  EXPECT_EQ(seeds.size(), 3u);
  sink_ = std::make_shared<FakeSink>();
  fields.choices.reset();
  Generate(fields);
  EXPECT_EQ(Call(kBase, 3).spec.sampling.seed, Call(kBase, 0).spec.sampling.seed);
}

// As workers send what they guessed right, also behind a stop string that they know nothing of.
TEST_F(AnswersTest, TokensThatComeTogetherGiveTheAnswersOfTokensThatComeOneByOne) {
  const std::string texts[] = {"hello END of it", "good day, friEND"};
  const auto run = [&](size_t at_once) {
    sink_ = std::make_shared<FakeSink>();
    RequestFields fields = Several("base", 2);
    fields.seed = 42;
    fields.stop = {"END"};
    const size_t before = Calls(kBase);
    Generate(fields);
    for (size_t i = 0; i < std::size(texts); ++i) {
      FakeCall& call = Call(kBase, before + i);
      for (size_t from = 0; from < texts[i].size() && !call.is_cancelled; from += at_once) {
        std::vector<WorkerToken> tokens;
        for (const char c : texts[i].substr(from, at_once))
          tokens.push_back({.token = static_cast<unsigned char>(c), .logprob = -0.1f});
        call.events->OnTokens(std::move(tokens));
      }
      EXPECT_TRUE(call.is_cancelled) << "nobody wants the rest";
      call.Fail(Cancelled("by us"));
    }
    return sink_->choices;
  };
  auto wanted = run(1);
  EXPECT_EQ(wanted[0].text, "hello ");
  EXPECT_EQ(wanted[1].text, "good day, fri");
  for (const size_t at_once : {2u, 3u, 5u, 9u, 64u}) {
    SCOPED_TRACE(at_once);
    auto choices = run(at_once);
    for (uint32_t i = 0; i < std::size(texts); ++i) {
      EXPECT_EQ(choices[i].text, wanted[i].text);
      EXPECT_EQ(choices[i].details, wanted[i].details);
      ASSERT_TRUE(choices[i].end.has_value() && wanted[i].end.has_value());
      EXPECT_EQ(choices[i].end->stop, "END");
      EXPECT_EQ(choices[i].end->usage, wanted[i].end->usage);
    }
  }
}

TEST_F(AnswersTest, AnswersStreamMixedAndEndOneByOne) {
  Generate(Several("base", 3));
  Call(kBase, 1).SendText("b");
  Call(kBase, 0).SendText("a");
  Call(kBase, 1).Answer("BB");
  EXPECT_EQ(Choice(0).text, "a");
  EXPECT_EQ(Choice(1).text, "bBB");
  EXPECT_TRUE(Choice(1).end.has_value());
  Call(kBase, 2).SendText("c");
  Call(kBase, 2).Finish(AnswerEnd::kLength);
  EXPECT_FALSE(sink_->end.has_value());
  EXPECT_EQ(admission_.in_flight(), 1u) << "one place for all";
  Call(kBase, 0).Answer("A");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(Choice(0).text, "aA");
  EXPECT_EQ(Choice(2).end->end, AnswerEnd::kLength);
  EXPECT_EQ(End()->end, AnswerEnd::kStop) << "of the first choice";
}

TEST_F(AnswersTest, AFullSinkStopsTheCallsOfAllAnswersUntilThereIsRoom) {
  Generate(Several("base", 3));
  Call(kBase, 0).SendText("a");
  sink_->full = true;
  std::vector<uint32_t> resumed;
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(Call(kBase, i).events->is_full());
    resumed.push_back(Call(kBase, i).resumed);
  }
  Call(kBase, 1).Answer("under way");
  EXPECT_EQ(Choice(1).text, "under way");
  sink_->full = false;
  sink_->room();
  for (const size_t i : {0, 2}) {
    EXPECT_FALSE(Call(kBase, i).events->is_full());
    EXPECT_EQ(Call(kBase, i).resumed, resumed[i] + 1);
  }
  for (const size_t i : {0, 2}) Call(kBase, i).Answer("b");
  EXPECT_TRUE(End().ok());
  sink_->room();  // when all is over, nobody is there
}

TEST_F(AnswersTest, AClientThatReadTooSlowlyIsTheReasonOfTheEnd) {
  const auto cancel = Generate(Several("base", 2));
  Call(kBase, 0).SendText("a");
  sink_->closed = sink_->too_slow = true;
  cancel();
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(Call(kBase, i).is_cancelled);
    Call(kBase, i).Fail(Cancelled("by the router"));
  }
  EXPECT_EQ(Reason(End().status()), "slow_reader");
  EXPECT_EQ(Metric("terrace_slow_readers_total{api=\"generate\"}"), 1);
  EXPECT_EQ(Metric("terrace_tier_attempts_total{result=\"abandoned\",tier=\"base\"}"), 2);
}

TEST_F(AnswersTest, ThePromptCountsOnceAndTheTokensOfAllAnswers) {
  Generate(Several("base", 3));
  Call(kBase, 2).Answer("c");
  Call(kBase, 1).Answer("bb");
  Call(kBase, 0).SendText("aaa");
  Call(kBase, 0).Finish(AnswerEnd::kStop, /*cached_tokens=*/3);
  EXPECT_EQ(Choice(0).end->usage, (TokenUsage{4, 3, 3}));
  EXPECT_EQ(Choice(1).end->usage, (TokenUsage{0, 0, 3}));
  EXPECT_EQ(Choice(2).end->usage, (TokenUsage{0, 0, 2}));
  EXPECT_EQ(End()->usage, (TokenUsage{4, 3, 8}));
  EXPECT_DOUBLE_EQ(End()->price_usd, (4 + 8) * 100 / 1e6);
  ExpectMetered("base", {4, 3, 8}, (4 + 8) * 100 / 1e6);
  ASSERT_EQ(End()->attempts.size(), 3u);
  for (uint32_t i = 0; i < 3; ++i) EXPECT_EQ(End()->attempts[i].choice, i);
  EXPECT_EQ(Metric("terrace_requests_total{api=\"generate\",finish_reason=\"stop\",model=\"base\",outcome="
                   "\"ok\",tier=\"base\"}"),
            1);
}

TEST_F(AnswersTest, WhatWorkersDraftedIsCountedForEachAnswerAndForAll) {
  Generate(Several("base", 2));
  Call(kBase, 1).speculated = 5;
  Call(kBase, 1).accepted_speculated = 2;
  Call(kBase, 1).Answer("bb");
  Call(kBase, 0).speculated = 3;
  Call(kBase, 0).Answer("a");
  EXPECT_EQ(Choice(0).end->usage, (TokenUsage{4, 0, 2, 3, 0}));
  EXPECT_EQ(Choice(1).end->usage, (TokenUsage{0, 0, 3, 5, 2}));
  EXPECT_EQ(End()->usage, (TokenUsage{4, 0, 5, 8, 2}));
  ASSERT_EQ(End()->attempts.size(), 2u);
  EXPECT_EQ(End()->attempts[1].usage, (TokenUsage{0, 0, 3, 5, 2}));
}

TEST_F(AnswersTest, AllAnswersGoToTheReplicaThatTheBalancerPickedOnce) {
  const auto each_in_turn = MakeBalancer(BalancePolicy::kRoundRobin);
  dispatcher_ = MakeDispatcher({cluster_, *catalog_, *each_in_turn, admission_, recorder_, clock_, 7});
  Generate(Several("base", 4));
  EXPECT_EQ(Calls(kBase, 0), 4u);
  EXPECT_EQ(Calls(kBase, 1), 0u);
  Generate(Several("base", 2));
  EXPECT_EQ(Calls(kBase, 0), 4u) << "one request is one turn";
  EXPECT_EQ(Calls(kBase, 1), 2u);
}

TEST_F(AnswersTest, AnswersWhoseReplicaIsGoneMeetAgainOnAnother) {
  Generate(Several("base", 2));
  cluster_.tier(kBase).replicas[0].state = ReplicaState::kConnecting;
  Call(kBase, 0).Fail(Unavailable("gone"));
  Call(kBase, 1).Fail(Unavailable("gone"));
  ASSERT_EQ(Calls(kBase, 1), 2u);
  Call(kBase, 0, /*replica=*/1).Answer("a");
  Call(kBase, 1, /*replica=*/1).Answer("b");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(Choice(1).text, "b");
  EXPECT_EQ(End()->usage, (TokenUsage{4, 0, 4}));
}

TEST_F(AnswersTest, AClientThatCancelsStopsEveryAnswer) {
  const auto cancel = Generate(Several("base", 3));
  Call(kBase, 0).SendText("a");
  Call(kBase, 1).Answer("b");
  cancel();
  for (const size_t i : {0, 2}) EXPECT_TRUE(Call(kBase, i).is_cancelled);
  Call(kBase, 0).Fail(Cancelled("by us"));
  EXPECT_FALSE(sink_->end.has_value()) << "one is still running";
  Call(kBase, 2).Fail(Cancelled("by us"));
  EXPECT_EQ(Reason(End().status()), "client_closed");
  ExpectMetered("base", {4, 0, 3}, (4 + 3) * 100 / 1e6);
}

TEST_F(AnswersTest, AClosedSinkStopsEveryAnswer) {
  Generate(Several("base", 2));
  sink_->closed = true;
  Call(kBase, 1).SendText("b");
  EXPECT_TRUE(Call(kBase, 0).is_cancelled);
  Call(kBase, 0).Fail(Cancelled("by us"));
  Call(kBase, 1).Fail(Cancelled("by us"));
  EXPECT_EQ(End().status().code(), StatusCode::kCancelled);
}

TEST_F(AnswersTest, AnAnswerThatFailsEndsTheRequestAndTheOthersAtNoCost) {
  Generate(Several("base", 4));
  Call(kBase, 0).SendText("a");
  Call(kBase, 1).Answer("b");
  Call(kBase, 2).SendText("c");
  Call(kBase, 2).Fail(WithReason(Internal("NaN"), "numeric_error"));  // as on every replica
  EXPECT_TRUE(Call(kBase, 0).is_cancelled);
  EXPECT_TRUE(Call(kBase, 3).is_cancelled);
  Call(kBase, 0).SendText("late");
  EXPECT_EQ(Choice(0).text, "a");
  Call(kBase, 0).Fail(Cancelled("by us"));
  Call(kBase, 3).Finish();  // was over before the cancellation came
  EXPECT_EQ(Reason(End().status()), "numeric_error");
  EXPECT_TRUE(Choice(1).end.has_value()) << "was over before";
  EXPECT_FALSE(Choice(3).end.has_value());
  EXPECT_EQ(Metric("terrace_tier_attempts_total{result=\"accepted\",tier=\"base\"}"), 1);
  EXPECT_EQ(Metric("terrace_tier_attempts_total{result=\"failed\",tier=\"base\"}"), 3);
  EXPECT_NEAR(Metric("terrace_cost_usd_total{tier=\"base\"}"), 2 * 100 / 1e6, 1e-9) << "what was finished";
}

TEST_F(AnswersTest, ARefusalIsSaidOnceAndAsksNobodyFurther) {
  cluster_.tier(kSmall).replicas[0].state = ReplicaState::kSilent;
  Generate(Several("small", 16));
  EXPECT_EQ(Reason(End().status()), "no_capacity");
  EXPECT_EQ(Calls(kSmall), 0u);
  EXPECT_EQ(Metric("terrace_requests_total{api=\"generate\",finish_reason=\"none\",model=\"small\",outcome="
                   "\"unavailable\",tier=\"none\"}"),
            1);
}

TEST_F(AnswersTest, EachAnswerClimbsTheTiersOnItsOwnAndEachTierBillsThePromptOnce) {
  Generate(Several("auto", 3));
  Call(kNano, 1).Answer("b", kConfident);
  EXPECT_EQ(Choice(1).text, "b");
  Call(kNano, 2).Answer("c", kUnsure);
  Call(kNano, 0).Answer("a", kUnsure);
  ASSERT_EQ(Calls(kSmall), 2u);
  Call(kSmall, 0).Answer("C", kConfident);  // the third answer was there first
  Call(kSmall, 1).Answer("A", kConfident);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(Choice(0).text, "A");
  EXPECT_EQ(Choice(1).end->tier, "nano");
  EXPECT_EQ(Choice(2).text, "C");
  EXPECT_EQ(Choice(0).end->usage, (TokenUsage{4, 0, 2})) << "the prompt is the first choice's";
  EXPECT_EQ(End()->usage, (TokenUsage{4, 0, 6}));
  ExpectMetered("nano", {4, 0, 6}, (4 + 6) * 1 / 1e6);
  ExpectMetered("small", {4, 0, 4}, (4 + 4) * 10 / 1e6);
  EXPECT_DOUBLE_EQ(End()->price_usd, ((4 + 6) * 1 + (4 + 4) * 10) / 1e6);
}

TEST_F(AnswersTest, ATierIsNotAskedForTokensThatItHasNotThoughItSharesTheTokenizer) {
  cluster_.tier(kNano).vocab_size = 200;
  Generate(Fields("auto", std::vector<TokenId>{1, 250}));
  EXPECT_EQ(Calls(kNano), 0u);
  ASSERT_EQ(Calls(kSmall), 1u);
  Call(kSmall, 0).Answer("a", kConfident);
  EXPECT_TRUE(End().ok()) << End().status();
}

TEST_F(AnswersTest, TheBestAreSentInOrderWhenAllAreOver) {
  Generate(Several("base", 2, /*best_of=*/4));
  const char* texts[] = {"a", "b", "c", "d"};
  const float logprobs[] = {-2, -0.5, -3, -0.5};  // a tie: the one drawn first is better
  for (size_t i = 4; i-- > 0;) {
    EXPECT_TRUE(Choice(0).text.empty() && !Choice(0).end.has_value());
    clock_.Advance(std::chrono::seconds(1));
    Call(kBase, i).Answer(texts[i], logprobs[i]);
  }
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->choices.size(), 2u);
  EXPECT_EQ(Choice(0).text, "b");
  EXPECT_EQ(Choice(1).text, "d");
  EXPECT_EQ(Choice(0).end->usage, (TokenUsage{4, 0, 6})) << "with the prompt and what was not sent";
  EXPECT_EQ(Choice(1).end->usage, (TokenUsage{0, 0, 2}));
  EXPECT_EQ(End()->usage, (TokenUsage{4, 0, 8}));
  EXPECT_DOUBLE_EQ(End()->price_usd, (4 + 8) * 100 / 1e6);
  EXPECT_DOUBLE_EQ(Choice(0).end->price_usd + Choice(1).end->price_usd, End()->price_usd);
  ASSERT_EQ(Choice(0).end->attempts.size(), 3u);
  EXPECT_FALSE(Choice(0).end->attempts[0].accepted);
  EXPECT_TRUE(Choice(0).end->attempts[2].accepted);
  EXPECT_FLOAT_EQ(Choice(0).end->attempts[2].mean_logprob, -0.5f);
  EXPECT_DOUBLE_EQ(Choice(0).end->time_to_first_token_seconds, 4) << "nothing could be shown before";
}

TEST_F(AnswersTest, ARankedAnswerThatWentOnAtAnotherReplicaIsRankedAsAWhole) {
  Generate(Several("base", 1, /*best_of=*/2));
  Call(kBase, 0).SendText("half", -5);
  Call(kBase, 0).Fail(Unavailable("gone"));
  Call(kBase, 0, /*replica=*/1).Answer("half", -1);  // -25 / 9 altogether
  Call(kBase, 1).Answer("other", -2);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "other");
}

TEST_F(AnswersTest, NothingIsSentWhenOneOfTheRankedFails) {
  Generate(Several("base", 1, /*best_of=*/3));
  Call(kBase, 0).Answer("a");
  Call(kBase, 1).Fail(WithReason(Internal("NaN"), "numeric_error"));
  Call(kBase, 2).Fail(Cancelled("by us"));
  EXPECT_EQ(Reason(End().status()), "numeric_error");
  EXPECT_EQ(sink_->text, "");
}

TEST_F(AnswersTest, AsManyDrawnAsSentAreNotRanked) {
  Generate(Several("base", 2, /*best_of=*/2));
  Call(kBase, 0).SendText("a", -9);
  EXPECT_EQ(Choice(0).text, "a");
}

TEST_F(AnswersTest, AnEchoPutsThePromptsTextBeforeEveryAnswer) {
  const struct {
    RequestInput input;
    std::string echo;
  } cases[] = {{std::string("abcd"), "abcd"},
               {std::vector<ChatMessage>{{"user", "hi"}}, "hi|"},
               {std::vector<TokenId>{'x', 0xFF, 'y'}, "x\uFFFDy"}};
  for (const auto& c : cases) {
    sink_ = std::make_shared<FakeSink>();
    RequestFields fields = Several("base", 2);
    fields.input = c.input;
    fields.echo = true;
    fields.stop = {c.echo};  // stops are matched in what the model writes
    const size_t first = Calls(kBase);
    Generate(std::move(fields));
    Call(kBase, first).SendText("1");
    EXPECT_EQ(Choice(0).text, c.echo + "1");
    Call(kBase, first).Answer("2");
    Call(kBase, first + 1).Finish(AnswerEnd::kLength);  // without any token
    ASSERT_TRUE(End().ok()) << End().status();
    EXPECT_EQ(Choice(0).text, c.echo + "12");
    EXPECT_EQ(Choice(0).tokens.size(), 3u) << "the prompt's tokens are not the answer's";
    EXPECT_EQ(Choice(1).text, c.echo);
  }
}

TEST_F(AnswersTest, AnEchoComesOnceAlsoWhereAnAnswerIsHeldBackOrThrownAway) {
  RequestFields fields = Several("auto", 1);
  fields.echo = true;
  Generate(std::move(fields));
  Call(kNano, 0).Answer("no", kUnsure);
  Call(kSmall, 0).Answer("yes", kConfident);
  EXPECT_EQ(sink_->text, "abcdyes");
}

TEST_F(AnswersTest, TheFirstAnswersCallScoresThePromptAndItsScoresComeFirst) {
  RequestFields fields = Several("base", 2);
  fields.prompt_logprobs = 1;
  Generate(fields);
  EXPECT_TRUE(Call(kBase, 0).spec.score_prompt);
  EXPECT_FALSE(Call(kBase, 1).spec.score_prompt);
  EXPECT_EQ(Call(kBase, 0).spec.top_logprobs, 1u);
  EXPECT_EQ(Call(kBase, 1).spec.top_logprobs, 0u);
  for (const size_t i : {0, 1}) EXPECT_EQ(Call(kBase, i).spec.max_tokens, 60u) << "0 would mean none";
  Call(kBase, 0).events->OnPromptScores({{'b', -1, {{'x', -0.5}}}});
  Call(kBase, 0).events->OnPromptScores({{'c', -2, {}}, {'d', -3, {}}});
  EXPECT_TRUE(sink_->prompt_tokens.empty()) << "another replica might still have to do it again";
  Call(kBase, 0).events->OnTokens({{'A', -0.1f, {{'A', -0.1f}}}});
  ASSERT_EQ(sink_->prompt_tokens.size(), 4u);
  EXPECT_EQ(sink_->prompt_tokens[0].id, 'a');
  EXPECT_EQ(sink_->prompt_tokens[0].logprob, 0);
  EXPECT_EQ(sink_->prompt_tokens[1].logprob, -1);
  EXPECT_EQ(sink_->prompt_tokens[1].top.at(0).id, 'x');
  EXPECT_EQ(sink_->prompt_tokens[3].bytes, "d");
  EXPECT_EQ(sink_->text, "A");
  Call(kBase, 0).Answer("B");
  Call(kBase, 1).Answer("C");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "AB");
}

TEST_F(AnswersTest, PromptScoresAreThoseOfTheTierThatAnswered) {
  RequestFields fields = Several("auto", 1);
  fields.prompt_logprobs = 0;
  Generate(fields);
  Call(kNano, 0).events->OnPromptScores({{'b', -1, {}}, {'c', -1, {}}, {'d', -1, {}}});
  Call(kNano, 0).Answer("no", kUnsure);
  EXPECT_TRUE(Call(kSmall, 0).spec.score_prompt);
  Call(kSmall, 0).events->OnPromptScores({{'b', -7, {}}, {'c', -7, {}}, {'d', -7, {}}});
  Call(kSmall, 0).Answer("yes", kConfident);
  ASSERT_TRUE(End().ok()) << End().status();
  ASSERT_EQ(sink_->prompt_tokens.size(), 4u);
  EXPECT_EQ(sink_->prompt_tokens[1].logprob, -7);
}

TEST_F(AnswersTest, PromptScoresComeBeforeTheBestAnswer) {
  RequestFields fields = Several("base", 1, /*best_of=*/2);
  fields.prompt_logprobs = 0;
  fields.input = std::string("ab");
  Generate(fields);
  Call(kBase, 0).events->OnPromptScores({{'b', -1, {}}});
  Call(kBase, 0).Answer("worse", -2);
  Call(kBase, 1).Answer("better", -1);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "better");
  EXPECT_EQ(sink_->prompt_tokens.size(), 2u);
}

TEST_F(AnswersTest, MissingOrForeignPromptScoresAreTheWorkersFault) {
  RequestFields fields = Several("small", 1);
  fields.prompt_logprobs = 0;
  for (const TokenId scored : {'b', 'z'}) {
    sink_ = std::make_shared<FakeSink>();
    Generate(fields);
    FakeCall& call = cluster_.call(kSmall);
    call.events->OnPromptScores({{scored, -1, {}}});
    call.SendText("a");
    EXPECT_TRUE(call.is_cancelled);
    call.Fail(Cancelled("by us"));
    EXPECT_EQ(Reason(End().status()), "worker_protocol");
    EXPECT_EQ(sink_->text, "");
  }
}

TEST_F(AnswersTest, AlternativesOfThePromptAreNoAlternativesOfTheAnswer) {
  RequestFields fields = Several("base", 1);
  fields.input = std::string("ab");
  fields.logprobs = true;
  fields.top_logprobs = 1;
  fields.prompt_logprobs = 2;
  size_t alternatives = 0;
  struct CountingSink : FakeSink {
    explicit CountingSink(size_t& to) : alternatives(to) {}
    void OnPiece(AnswerPiece piece) override {
      for (const AnswerToken& token : piece.tokens) alternatives += token.top.size();
    }
    size_t& alternatives;
  };
  dispatcher_->Generate(*Request::Make(fields), std::make_shared<CountingSink>(alternatives));
  EXPECT_EQ(Call(kBase, 0).spec.top_logprobs, 2u);
  Call(kBase, 0).events->OnPromptScores({{'b', -1, {{'x', -1}, {'y', -2}}}});
  Call(kBase, 0).events->OnTokens({{'A', -1, {{'A', -1}, {'B', -2}}}});
  EXPECT_EQ(alternatives, 1u);
}

TEST_F(AnswersTest, AnswersMayComeFromAsManyThreads) {
  for (const std::optional<int64_t> best_of : {std::optional<int64_t>(), std::optional<int64_t>(16)}) {
    sink_ = std::make_shared<FakeSink>();
    const size_t first = Calls(kBase);
    const int64_t choices = best_of.has_value() ? 15 : 16;
    Generate(Several("base", choices, best_of));
    std::vector<std::thread> workers;
    for (size_t i = 0; i < 16; ++i) {
      workers.emplace_back([call = cluster_.replica(kBase, 0).calls[first + i]] { call->Answer("hello"); });
    }
    for (std::thread& worker : workers) worker.join();
    ASSERT_TRUE(End().ok()) << End().status();
    EXPECT_EQ(End()->usage, (TokenUsage{4, 0, 16 * 6}));
    std::vector<std::string> texts;
    for (const auto& [index, choice] : sink_->choices) texts.push_back(choice.text);
    EXPECT_EQ(texts.size(), static_cast<size_t>(choices));
    EXPECT_THAT(texts, Each("hello"));
  }
}

TEST_F(AnswersTest, AFailureWhileOthersFinishEndsTheRequestOnce) {
  for (int round = 0; round < 50; ++round) {
    SCOPED_TRACE(round);
    sink_ = std::make_shared<FakeSink>();
    const size_t first = Calls(kSmall);
    const auto cancel = Generate(Several("small", 4));
    std::vector<std::thread> threads;
    for (size_t i = 0; i < 4; ++i) {
      threads.emplace_back([call = cluster_.replica(kSmall, 0).calls[first + i], i] {
        call->SendText("hel");
        if (i == 1) return call->Fail(WithReason(Internal("NaN"), "numeric_error"));
        call->Answer("lo");
      });
    }
    threads.emplace_back(cancel);
    for (std::thread& thread : threads) thread.join();
    EXPECT_FALSE(End().ok());
  }
}

}  // namespace
}  // namespace terrace
