// Answers whose workers are lost in the middle: the client sees what it sees when nothing happens.
#include <functional>

#include "base/rng.h"
#include "router/dispatch/attempts.h"
#include "router/dispatch/failover.h"
#include "router/dispatch/testing_dispatcher.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kSeed = 42;

// The workers' part of an answer.
struct Script {
  std::vector<WorkerToken> tokens = {};
  AnswerEnd end = AnswerEnd::kStop;
};

// A token for each byte of `text`, each with a log-probability and alternatives of its own.
Script Cut(std::string_view text, AnswerEnd end = AnswerEnd::kLength, float logprob = -0.1f) {
  Script script{.end = end};
  for (const char c : text) {
    const TokenId token = static_cast<unsigned char>(c);
    logprob -= 0.001f;
    script.tokens.push_back(
        {.token = token, .logprob = logprob, .top = {{token, logprob}, {'~', logprob - 1}}});
  }
  return script;
}
// The same, and the end token.
Script Whole(std::string_view text, float logprob = -0.1f) {
  Script script = Cut(text, AnswerEnd::kStop, logprob);
  script.tokens.push_back({.token = ByteTokenizer::kEnd, .logprob = logprob});
  return script;
}

std::vector<TokenId> Ids(const Script& script, size_t first) {
  std::vector<TokenId> ids;
  for (size_t i = 0; i < first; ++i) ids.push_back(script.tokens[i].token);
  return ids;
}

void AddSummary(const AnswerSummary& summary, std::string& out) {
  const TokenUsage& usage = summary.usage;
  out += Concat(AnswerEndName(summary.end), " \"", summary.stop, "\" of ", summary.tier, ", ",
                usage.prompt_tokens, " ", usage.cached_tokens, " ", usage.completion_tokens, ", $",
                summary.price_usd, "\n");
}

// All that a client was told.
std::string Transcript(const FakeSink& sink) {
  std::string out;
  for (const AnswerToken& token : sink.prompt_tokens) out += Concat(token.id, " ", token.logprob, "\n");
  for (const auto& [index, choice] : sink.choices) {
    out += Concat(index, ": ", choice.text, "\n");
    for (const std::string& details : choice.details) out += Concat(details, "\n");
    for (const ToolCall& call : choice.tool_calls) out += Concat(call.id, call.name, call.arguments, "\n");
    if (choice.end.has_value()) AddSummary(*choice.end, out);
  }
  if (!sink.end.has_value()) return out + "no end";
  if (!sink.end->ok()) return out + Reason(sink.end->status());
  AddSummary(**sink.end, out);
  return out;
}

class ResumeTest : public DispatcherTest {
 protected:
  // The call for a draw that is not over; null: there is none.
  FakeCall* FindRunning(size_t tier, uint32_t draw) {
    for (size_t replica = 0; replica < cluster_.tier(tier).replicas.size(); ++replica) {
      for (const auto& call : cluster_.replica(tier, replica).calls) {
        if (!call->is_done && call->spec.sampling.seed == ChoiceSeed(kSeed, draw)) return call.get();
      }
    }
    return nullptr;
  }

  // What the worker of `call` says, up to so many tokens of the whole answer. Only a call that begins the
  // answer finds much of the prompt in its cache.
  static void Say(FakeCall& call, const Script& script, size_t until) {
    const size_t from = call.spec.resume.size();
    EXPECT_EQ(call.spec.resume, Ids(script, from));
    call.Start(/*cached_tokens=*/from == 0 ? 3 : 1);
    EXPECT_TRUE(from == 0 || !call.spec.score_prompt) << "they are known";
    if (call.spec.score_prompt) {
      for (size_t i = 1; i < call.spec.prompt->size(); ++i)
        call.events->OnPromptScores({{.token = (*call.spec.prompt)[i], .logprob = -static_cast<float>(i)}});
    }
    for (size_t i = from; i < std::min(until, script.tokens.size()); ++i) call.Send(script.tokens[i]);
  }

  // The workers' part for one draw; with a `cut`, the first one is lost after so many tokens.
  void Play(size_t tier, uint32_t draw, const Script& script, std::optional<size_t> cut) {
    FakeCall* call = FindRunning(tier, draw);
    ASSERT_NE(call, nullptr);
    if (cut.has_value()) {
      Say(*call, script, *cut);
      const bool was_stopped = call->is_cancelled;
      call->Fail(was_stopped ? Cancelled("by us") : Unavailable("gone"));
      call = FindRunning(tier, draw);
      if (call == nullptr) return;  // nothing was missing
      EXPECT_FALSE(was_stopped);
    }
    Say(*call, script, script.tokens.size());
    if (call->is_cancelled) return call->Fail(Cancelled("by us"));
    call->Finish(script.end, /*cached_tokens=*/call->spec.resume.empty() ? 3 : 1);
  }

  std::string Run(const RequestFields& fields, size_t tier, const std::vector<Script>& scripts,
                  std::optional<size_t> cut) {
    sink_ = std::make_shared<FakeSink>();
    Generate(fields);
    for (uint32_t draw = 0; draw < scripts.size(); ++draw) Play(tier, draw, scripts[draw], cut);
    EXPECT_TRUE(sink_->end.has_value() && sink_->end->ok());
    return Transcript(*sink_);
  }

  RequestFields With(const std::string& model, RequestInput input,
                     const std::function<void(RequestFields&)>& change) {
    RequestFields fields = Fields(model, std::move(input));
    fields.seed = kSeed;
    change(fields);
    return fields;
  }
  void SetState(size_t tier, size_t replica, ReplicaState state) {
    cluster_.tier(tier).replicas[replica].state = state;
  }
};

const Status kDraining = WithReason(Unavailable("the worker is stopping"), "draining");
const RequestInput kPrompt = std::string("abcd");
const RequestInput kChat = std::vector<ChatMessage>{{"user", "hi"}};

TEST_F(ResumeTest, WhereverItIsCutOffAnAnswerIsAsIfNothingHadHappened) {
  cluster_.tier(kBase).text = ByteTextWithTools();
  const auto plain = [](RequestFields&) {};
  const struct {
    const char* name;
    const char* model;
    size_t tier;
    RequestInput input;
    std::function<void(RequestFields&)> change;
    std::vector<Script> scripts;  // by draw
  } cases[] = {
      {"characters of several bytes", "base", kBase, kPrompt, plain, {Whole("h\u00e9ll\u20ac \U0001F600")}},
      {"half a character at the end", "base", kBase, kPrompt, plain, {Whole("h\xe2\x82")}},
      {"log-probabilities",
       "base",
       kBase,
       kPrompt,
       [](RequestFields& fields) {
         fields.logprobs = true;
         fields.top_logprobs = 2;
       },
       {Whole("hello")}},
      {"a stop string",
       "base",
       kBase,
       kPrompt,
       [](RequestFields& fields) {
         fields.stop = {"END", "NDx"};
       },
       {Whole("okENDmore")}},
      {"the beginning of a stop string",
       "base",
       kBase,
       kPrompt,
       [](RequestFields& fields) { fields.stop = {"END"}; },
       {Whole("okENokEN")}},
      {"a stop token",
       "base",
       kBase,
       kPrompt,
       [](RequestFields& fields) { fields.stop_tokens = {'!'}; },
       {Cut("ok!", AnswerEnd::kStop)}},
      {"an end token that does not end it",
       "base",
       kBase,
       kPrompt,
       [](RequestFields& fields) {
         fields.ignore_eos = true;
         fields.max_tokens = 4;
       },
       {{.tokens = {{.token = 'a'}, {.token = ByteTokenizer::kEnd}, {.token = 'b'}, {.token = 'c'}},
         .end = AnswerEnd::kLength}}},
      {"max_tokens",
       "base",
       kBase,
       kPrompt,
       [](RequestFields& fields) { fields.max_tokens = 5; },
       {Cut("hello")}},
      {"a full context", "base", kBase, std::string(60, 'x'), plain, {Cut("full")}},
      {"a call of a tool",
       "base",
       kBase,
       kChat,
       [](RequestFields& fields) { fields.tools = {{.name = "now"}}; },
       {Whole("a<tool_call>{\"name\":\"now\"}</tool_call>b")}},
      {"the only call that there may be",
       "base",
       kBase,
       kChat,
       [](RequestFields& fields) {
         fields.tools = {{.name = "now"}};
         fields.parallel_tool_calls = false;
       },
       {Whole("a<tool_call>{\"name\":\"now\"}</tool_call>b")}},
      {"an echo, and the prompt's scores",
       "base",
       kBase,
       kPrompt,
       [](RequestFields& fields) {
         fields.echo = true;
         fields.prompt_logprobs = 1;
       },
       {Whole("hello")}},
      {"two answers",
       "base",
       kBase,
       kPrompt,
       [](RequestFields& fields) { fields.choices = 2; },
       {Whole("hello"), Whole("good day")}},
      {"the best of two",
       "base",
       kBase,
       kPrompt,
       [](RequestFields& fields) {
         fields.choices = 1;
         fields.best_of = 2;
         fields.prompt_logprobs = 0;
       },
       {Whole("hello", -2), Whole("good day", -1)}},
      {"held back and accepted", "auto", kNano, kPrompt, plain, {Whole("hello", kConfident)}},
  };
  for (const auto& c : cases) {
    clock_.Advance(std::chrono::seconds(RetryBudget::kWindowSeconds));
    const RequestFields fields = With(c.model, c.input, c.change);
    const std::string want = Run(fields, c.tier, c.scripts, {});
    for (size_t cut = 0; cut <= c.scripts.front().tokens.size(); ++cut) {
      SCOPED_TRACE(Concat(c.name, ", cut off after ", cut));
      EXPECT_EQ(Run(fields, c.tier, c.scripts, cut), want);
    }
  }
}

TEST_F(ResumeTest, WhatACallSaysAfterItsEndChangesNothing) {
  Generate(Fields("base"));
  const auto late = cluster_.call(kBase, 0).events;
  cluster_.call(kBase, 0).SendText("ab");
  cluster_.call(kBase, 0).Fail(Unavailable("gone"));
  const auto say_more = [&] {
    late->OnStarted(4);
    late->OnPromptScores({{.token = 'b'}});
    late->OnTokens({{.token = 'X'}});
    late->OnDone(ExecuteResult{.usage = {4, 4, 9}});
    late->OnDone(Unavailable("again"));
  };
  say_more();
  FakeCall& second = cluster_.call(kBase, 1);
  EXPECT_THAT(second.spec.resume, ElementsAre('a', 'b'));
  second.SendText("c");
  say_more();
  second.Answer("d");
  say_more();
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "abcd");
  EXPECT_EQ(End()->usage, (TokenUsage{4, 0, 5}));
  EXPECT_EQ(cluster_.replica(kBase, 1).calls.size(), 1u);
}

TEST_F(ResumeTest, WhatAWorkerLearnedOfItsDraftsGoesToTheOneThatGoesOnAsItCame) {
  Generate(Fields("base"));
  EXPECT_EQ(cluster_.call(kBase, 0).spec.draft_record, "");
  cluster_.call(kBase, 0).events->OnDraftRecord("first");
  cluster_.call(kBase, 0).SendText("a");
  cluster_.call(kBase, 0).events->OnDraftRecord(std::string("la\0st", 5));
  cluster_.call(kBase, 0).SendText("b");
  cluster_.call(kBase, 0).Fail(kDraining);
  EXPECT_EQ(cluster_.call(kBase, 1).spec.draft_record, std::string("la\0st", 5));
  cluster_.call(kBase, 1).Answer("c");  // of a worker that tells nothing
  EXPECT_TRUE(End().ok());
}

TEST_F(ResumeTest, WhatWasLearnedAtOneTierIsNotToldToTheNext) {
  Generate(Fields("auto"));
  cluster_.call(kNano, 0).events->OnDraftRecord("of nano");
  cluster_.call(kNano, 0).Answer("no", kUnsure);
  EXPECT_EQ(cluster_.call(kSmall, 0).spec.draft_record, "");
  cluster_.call(kSmall, 0).Answer("yes", kConfident);
  EXPECT_TRUE(End().ok());
}

TEST_F(ResumeTest, AReplicaIsAskedForTheProcessThatTheViewTellsOf) {
  cluster_.tier(kBase).replicas[1].description.instance = "second";
  Generate(Fields("base"));
  EXPECT_EQ(cluster_.call(kBase, 0).spec.instance, "");
  cluster_.call(kBase, 0).SendText("a");
  cluster_.call(kBase, 0).Fail(kDraining);
  EXPECT_EQ(cluster_.call(kBase, 1).spec.instance, "second");
  cluster_.call(kBase, 1).Answer("b");
  EXPECT_TRUE(End().ok());
}

TEST_F(ResumeTest, TheReplyAndTheMetricsTellWhatHappened) {
  Generate(Fields("base"));
  cluster_.call(kBase, 0).Start(/*cached_tokens=*/3);
  clock_.Advance(std::chrono::seconds(1));
  cluster_.call(kBase, 0).SendText("ab");
  clock_.Advance(std::chrono::seconds(2));
  cluster_.call(kBase, 0).Fail(WithReason(Unavailable("no update for 2 s"), kSilentReason));
  clock_.Advance(std::chrono::seconds(1));
  cluster_.call(kBase, 1).Answer("c");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(End()->usage, (TokenUsage{4, 3, 4}));
  EXPECT_DOUBLE_EQ(End()->price_usd, (4 + 4) * 100 / 1e6);
  EXPECT_DOUBLE_EQ(End()->time_to_first_token_seconds, 1);
  ASSERT_EQ(End()->attempts.size(), 2u);
  EXPECT_EQ(End()->attempts[0].usage, (TokenUsage{4, 3, 2}));
  EXPECT_EQ(End()->attempts[0].price_usd, 0);
  EXPECT_EQ(End()->attempts[1].replica, "base-1");
  EXPECT_EQ(End()->attempts[1].usage, (TokenUsage{4, 0, 2}));
  EXPECT_EQ(End()->attempts[1].resumed_tokens, 2u);
  EXPECT_TRUE(End()->attempts[1].accepted);
  ExpectMetered("base", {8, 3, 4}, (4 + 4) * 100 / 1e6);
  EXPECT_EQ(Metric("terrace_router_resumes_total{reason=\"silent\",tier=\"base\"}"), 1);
  EXPECT_EQ(Metric("terrace_router_resume_gap_seconds_sum{tier=\"base\"}"), 3);
  EXPECT_EQ(Metric("terrace_router_retries_total{reason=\"unavailable\",tier=\"base\"}"), 0);
}

TEST_F(ResumeTest, ReasonsAreThoseOfTheFailures) {
  const struct {
    Status failure;
    const char* reason;
  } cases[] = {
      {Unavailable("gone"), "unavailable"},
      {WithReason(Unavailable("quiet"), kSilentReason), "silent"},
      {kDraining, "draining"},
      {WithReason(Unavailable("another"), "wrong_instance"), "draining"},
      {WithReason(ResourceExhausted("full"), "overloaded"), "overloaded"},
      {Cancelled("going down"), "unavailable"},
      {Internal("bug"), "internal"},
      {WithReason(Internal("order"), "worker_protocol"), "protocol"},
      {Status(StatusCode::kUnknown, "?"), "unknown"},
  };
  for (const auto& c : cases) EXPECT_EQ(ResumeReason(c.failure), c.reason) << c.failure;
}

TEST_F(ResumeTest, AWorkersManyStreamsGoOnWhateverTheRetryBudgetSays) {
  for (uint64_t i = 0; i < 2 * RetryBudget::kFloor; ++i) {
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields("base"));
    cluster_.call(kBase, 0).SendText("a");
    cluster_.call(kBase, 0).Fail(Unavailable("gone"));
    cluster_.call(kBase, 1).Answer("b");
    ASSERT_TRUE(End().ok()) << End().status();
    EXPECT_EQ(sink_->text, "ab");
  }
  EXPECT_EQ(Metric("terrace_router_retries_refused_total{tier=\"base\"}"), 0);
}

TEST_F(ResumeTest, TwoReplicasMayTakeTurnsForAsLongAsTokensCome) {
  Generate(Fields("base"));
  const std::string text = "one at a time";
  for (size_t i = 0; i < text.size(); ++i) {
    FakeCall& call = cluster_.call(kBase, i % 2);
    ASSERT_FALSE(call.is_done) << i;
    call.SendText(text.substr(i, 1));
    call.Fail(kDraining);
  }
  cluster_.call(kBase, text.size() % 2).Answer("");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, text);
  EXPECT_EQ(End()->attempts.size(), text.size() + 1);
}

TEST_F(ResumeTest, SoManyAttemptsInARowMayBringNoToken) {
  FakeCluster wide(
      std::array<FakeCluster::TierSpec, 3>{{{"nano", 1, 64}, {"small", 1, 64}, {"base", 9, 64}}});
  dispatcher_ = MakeDispatcher(
      {wide, *catalog_, balancer_, admission_, recorder_, clock_, 7, RetryOptions{.max_attempts = 2}});
  const auto fail = [&](size_t replica, const std::string& text) {
    FakeCall& call = wide.call(kBase, replica);
    call.Start(0);
    call.SendText(text);
    call.Fail(Aborted("going down"));
  };
  Generate(Fields("base"));
  fail(0, "a");
  fail(1, "");
  fail(2, "b");  // the others may be asked again from that token on
  fail(0, "");
  EXPECT_FALSE(sink_->end.has_value());
  fail(1, "");
  EXPECT_EQ(Reason(End().status()), "worker_lost");
  EXPECT_EQ(sink_->text, "ab");
  EXPECT_TRUE(wide.replica(kBase, 3).calls.empty());
}

TEST_F(ResumeTest, ReplicasThatDoNotEvenBeginAreAskedOneAfterTheOtherUntilOneDoes) {
  FakeCluster wide(
      std::array<FakeCluster::TierSpec, 3>{{{"nano", 1, 64}, {"small", 1, 64}, {"base", 9, 64}}});
  dispatcher_ = MakeDispatcher({wide, *catalog_, balancer_, admission_, recorder_, clock_, 7});
  Generate(Fields("base"));
  wide.call(kBase, 0).SendText("a");
  wide.call(kBase, 0).Fail(Unavailable("gone"));
  const Status refusals[] = {WithReason(Unavailable("no connection"), kUnreachedReason), kDraining,
                             WithReason(ResourceExhausted("full"), "overloaded"),
                             WithReason(Unavailable("another"), "wrong_instance")};
  for (size_t i = 1; i < 9; ++i) wide.call(kBase, i).Fail(refusals[i % 4]);
  EXPECT_FALSE(sink_->end.has_value()) << "it waits";
  dispatcher_->Housekeep();
  clock_.Advance(Failover::kRest);
  dispatcher_->Housekeep();
  ASSERT_EQ(wide.replica(kBase, 8).calls.size(), 2u);
  wide.call(kBase, 8).Answer("b");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "ab");
}

TEST_F(ResumeTest, AnAnswerWaitsForItsOnlyReplicaToComeBack) {
  Generate(Fields("small"));
  cluster_.call(kSmall).SendText("ab");
  cluster_.call(kSmall).Fail(Unavailable("gone"));  // before the view knows
  dispatcher_->Housekeep();
  SetState(kSmall, 0, ReplicaState::kConnecting);
  clock_.Advance(std::chrono::seconds(9));
  dispatcher_->Housekeep();
  EXPECT_EQ(cluster_.replica(kSmall, 0).calls.size(), 1u);
  SetState(kSmall, 0, ReplicaState::kReady);
  dispatcher_->Housekeep();
  dispatcher_->Housekeep();
  ASSERT_EQ(cluster_.replica(kSmall, 0).calls.size(), 2u);
  cluster_.call(kSmall).Answer("c");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "abc");
  EXPECT_EQ(Metric("terrace_router_resume_gap_seconds_sum{tier=\"small\"}"), 9);
}

TEST_F(ResumeTest, PatienceEnds) {
  Generate(Fields("small"));
  cluster_.call(kSmall).SendText("ab");
  SetState(kSmall, 0, ReplicaState::kSilent);
  cluster_.call(kSmall).Fail(WithReason(Unavailable("quiet"), kSilentReason));
  clock_.Advance(RetryOptions().resume_patience - Duration(1));
  dispatcher_->Housekeep();
  EXPECT_FALSE(sink_->end.has_value());
  clock_.Advance(Duration(1));
  dispatcher_->Housekeep();
  EXPECT_EQ(Reason(End().status()), "worker_lost");
  EXPECT_EQ(sink_->text, "ab");
  EXPECT_EQ(Metric("terrace_cost_usd_total{tier=\"small\"}"), 0);
}

TEST_F(ResumeTest, AnAnswerThatHasNotBegunDoesNotWait) {
  Generate(Fields("small"));
  SetState(kSmall, 0, ReplicaState::kConnecting);
  cluster_.call(kSmall).Fail(Unavailable("gone"));
  EXPECT_EQ(Reason(End().status()), "worker_lost");
}

TEST_F(ResumeTest, AClientMayLeaveAndItsTimeMayPassWhileItsAnswerWaits) {
  for (const bool leaves : {true, false}) {
    sink_ = std::make_shared<FakeSink>();
    SetState(kSmall, 0, ReplicaState::kReady);
    // Another prompt each time: two workers lost at one place of the same answer are poison.
    RequestFields fields = Fields("small", std::string(leaves ? "who leaves" : "who waits"));
    fields.deadline = clock_.Now() + std::chrono::seconds(5);
    const auto cancel = Generate(std::move(fields));
    cluster_.call(kSmall).SendText("ab");
    SetState(kSmall, 0, ReplicaState::kConnecting);
    cluster_.call(kSmall).Fail(Unavailable("gone"));
    if (leaves) {
      cancel();
    } else {
      clock_.Advance(std::chrono::seconds(5));
    }
    dispatcher_->Housekeep();
    EXPECT_EQ(Reason(End().status()), leaves ? "client_closed" : "deadline_exceeded");
  }
}

TEST_F(ResumeTest, AnotherModelDoesNotGoOnWithAnAnswer) {
  for (const bool is_model : {true, false}) {
    sink_ = std::make_shared<FakeSink>();
    cluster_.tier(kBase).model_digest = "base model";
    Generate(Fields("base"));
    cluster_.call(kBase, 0).SendText("ab");
    (is_model ? cluster_.tier(kBase).model_digest : cluster_.tier(kBase).text_digest) = "another";
    cluster_.call(kBase, 0).Fail(kDraining);
    EXPECT_EQ(Reason(End().status()), "worker_lost");
    EXPECT_THAT(Message(End().status()), HasSubstr("another model"));
    EXPECT_EQ(sink_->text, "ab");
    EXPECT_TRUE(cluster_.replica(kBase, 1).calls.empty());
  }
}

TEST_F(ResumeTest, AnotherModelBeginsAnAnswerAnewOfWhichNothingWasShown) {
  Generate(Fields("auto"));
  cluster_.call(kNano, 0).SendText("ab");
  cluster_.tier(kNano).model_digest = "another";
  cluster_.call(kNano, 0).Fail(kDraining);
  EXPECT_THAT(cluster_.call(kNano, 1).spec.resume, IsEmpty());
  cluster_.call(kNano, 1).Answer("yes", kConfident);
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "yes");
  EXPECT_EQ(End()->usage, (TokenUsage{4, 0, 4}));
}

TEST_F(ResumeTest, EachAnswerOfARequestGoesOnByItself) {
  RequestFields fields = Fields("base");
  fields.choices = 2;
  Generate(std::move(fields));
  const auto& calls = cluster_.replica(kBase, 0).calls;
  calls[0]->SendText("a");
  calls[1]->SendText("xy");
  calls[1]->Fail(Unavailable("gone"));
  EXPECT_THAT(cluster_.call(kBase, 1).spec.resume, ElementsAre('x', 'y'));
  calls[0]->SendText("b");
  calls[0]->Fail(Unavailable("gone"));
  EXPECT_THAT(cluster_.call(kBase, 1).spec.resume, ElementsAre('a', 'b'));
  cluster_.replica(kBase, 1).calls[1]->Answer("c");
  cluster_.replica(kBase, 1).calls[0]->Answer("z");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->choices[0].text, "abc");
  EXPECT_EQ(sink_->choices[1].text, "xyz");
  EXPECT_EQ(End()->usage, (TokenUsage{4, 0, 8}));
}

TEST_F(ResumeTest, WhatAClientAbandonsAfterItWentOnIsPricedAsAWhole) {
  const auto cancel = Generate(Fields("base"));
  cluster_.call(kBase, 0).SendText("ab");
  cluster_.call(kBase, 0).Fail(Unavailable("gone"));
  cluster_.call(kBase, 1).SendText("c");
  cancel();
  cluster_.call(kBase, 1).Fail(Cancelled("by us"));
  EXPECT_EQ(Reason(End().status()), "client_closed");
  ExpectMetered("base", {8, 0, 3}, (4 + 3) * 100 / 1e6);
}

}  // namespace
}  // namespace terrace
