// Streams of many answers: first with sequences whose events the test gives, then over an engine.
#include "worker/server/serve_hub.h"

#include <condition_variable>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "base/grpc_status.h"
#include "gmock/gmock.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "worker/server/testing_worker.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr uint32_t kMuch = 1 << 20;  // credit for all that is to come

Status FromProto(const v1::ServeError& error) {
  return WithReason(status_internal::MakeStatus(static_cast<StatusCode>(error.code()), error.message()),
                    error.reason());
}

// A router's end of one stream. One thread at a time.
class Caller {
 public:
  explicit Caller(v1::Worker::Stub& stub) : stream_(stub.Serve(&context_)) {}

  bool Start(uint64_t call, const v1::ExecuteRequest& request, uint32_t credit = kMuch,
             std::optional<double> timeout = {}) {
    return StartWith(call, request.SerializeAsString(), credit, timeout);
  }
  bool StartWith(uint64_t call, const std::string& request, uint32_t credit = kMuch,
                 std::optional<double> timeout = {}) {
    v1::ServeCommands commands;
    v1::ServeStart& start = *Add(commands, call).mutable_start();
    start.set_request(request);
    start.set_credit(credit);
    if (timeout.has_value()) start.set_timeout_seconds(*timeout);
    return stream_->Write(commands);
  }
  // Calls 1 to `last`, in one message.
  void StartMany(uint64_t last, const v1::ExecuteRequest& request) {
    v1::ServeCommands commands;
    for (uint64_t call = 1; call <= last; ++call)
      Add(commands, call).mutable_start()->set_request(request.SerializeAsString());
    stream_->Write(commands);
  }
  void Credit(uint64_t call, uint32_t logprobs) {
    v1::ServeCommands commands;
    Add(commands, call).set_credit(logprobs);
    stream_->Write(commands);
  }
  void Cancel(uint64_t call) {
    v1::ServeCommands commands;
    Add(commands, call).set_cancel(true);
    stream_->Write(commands);
  }
  void WritesDone() { stream_->WritesDone(); }
  void TryCancel() { context_.TryCancel(); }

  // The next message, also kept by call in `answers`. Absent: the stream is over.
  struct Answer {
    std::vector<int32_t> tokens = {};
    bool has_finished = false;
    Status error = {};
    bool is_over() const { return has_finished || !error.ok(); }
  };
  std::optional<v1::ServeEvents> Read() {
    v1::ServeEvents events;
    if (!stream_->Read(&events)) return std::nullopt;
    for (const v1::ServeEvent& event : events.events()) {
      Answer& answer = answers[event.call()];
      EXPECT_FALSE(answer.is_over()) << "an event of call " << event.call() << " behind its end";
      if (event.event().has_tokens()) {
        EXPECT_EQ(event.event().tokens().first_index(), answer.tokens.size());
      }
      for (const auto& token : event.event().tokens().tokens()) answer.tokens.push_back(token.token());
      answer.has_finished = event.event().has_finished();
      if (event.has_error()) answer.error = FromProto(event.error());
    }
    return events;
  }
  // False: the stream ended before `is_so`.
  bool ReadUntil(const std::function<bool()>& is_so) {
    while (!is_so()) {
      if (!Read().has_value()) return false;
    }
    return true;
  }
  bool ReadToEndOf(uint64_t call) {
    return ReadUntil([&] { return answers[call].is_over(); });
  }
  Status Finish() {
    while (Read().has_value()) {
    }
    return FromGrpcStatus(stream_->Finish(), context_);
  }

  std::map<uint64_t, Answer> answers;

 private:
  static v1::ServeCommand& Add(v1::ServeCommands& commands, uint64_t call) {
    v1::ServeCommand& command = *commands.add_commands();
    command.set_call(call);
    return command;
  }

  grpc::ClientContext context_;
  const std::unique_ptr<grpc::ClientReaderWriter<v1::ServeCommands, v1::ServeEvents>> stream_;
};

// A worker whose sequences do what the test says.
class ScriptedWorker : public v1::Worker::CallbackService {
 public:
  explicit ScriptedWorker(const ServeHub::Options& options = {})
      : host_{.instance = "this",
              .submit =
                  [this](SequenceSpec spec, std::shared_ptr<TokenSink> sink) {
                    return Submit(std::move(spec), std::move(sink));
                  },
              .wake = [this] { ++wakes; },
              .metrics = metrics_},
        hub(options, host_) {
    grpc::ServerBuilder builder;
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    stub = v1::Worker::NewStub(server_->InProcessChannel({}));
  }
  ~ScriptedWorker() override { server_->Shutdown(std::chrono::system_clock::now()); }

  grpc::ServerBidiReactor<v1::ServeCommands, v1::ServeEvents>* Serve(
      grpc::CallbackServerContext* context) override {
    return hub.Serve(*context);
  }

  // Of the request with that id, once it has come.
  std::shared_ptr<TokenSink> Sink(const std::string& request_id) { return Await(request_id).sink; }
  SequenceSpec Spec(const std::string& request_id) { return Await(request_id).spec; }

 private:
  struct Sequence {
    SequenceSpec spec;
    std::shared_ptr<TokenSink> sink;
  };
  Status Submit(SequenceSpec spec, std::shared_ptr<TokenSink> sink) {
    std::lock_guard lock(mutex_);
    const std::string id = spec.request_id;
    sequences_[id] = {std::move(spec), std::move(sink)};
    changed_.notify_all();
    return {};
  }
  Sequence Await(const std::string& request_id) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return sequences_.contains(request_id); });
    return sequences_[request_id];
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Sequence> sequences_;  // GUARDED_BY(mutex_)
  WorkerMetrics metrics_;
  const ExecuteHost host_;

 public:
  std::atomic<int> wakes = 0;
  ServeHub hub;
  std::unique_ptr<v1::Worker::Stub> stub;

 private:
  std::unique_ptr<grpc::Server> server_;
};

v1::ExecuteRequest Named(const std::string& id) {
  v1::ExecuteRequest request = Request(10);
  request.set_request_id(id);
  return request;
}

void Give(TokenSink& sink, uint32_t index, int count = 1) {
  const std::vector<SampledToken> tokens(static_cast<size_t>(count));
  sink.OnTokens(index, tokens);
}

SequenceResult Failed(FinishReason reason, const Status& error) {
  SequenceResult result;
  result.reason = reason;
  result.error = error;
  return result;
}

void AwaitClosed(const TokenSink& sink) {
  while (!sink.is_closed()) std::this_thread::yield();
}

// Call and number of tokens of each event.
std::vector<std::pair<uint64_t, int>> Summary(const std::optional<v1::ServeEvents>& events) {
  std::vector<std::pair<uint64_t, int>> out;
  if (!events.has_value()) return out;
  for (const v1::ServeEvent& event : events->events())
    out.emplace_back(event.call(), event.event().tokens().tokens_size());
  return out;
}

TEST(ServeHub, WhatAStepGivesToManyCallsGoesOutInOneMessageWhenItIsFlushed) {
  ScriptedWorker worker;
  Caller caller(*worker.stub);
  for (uint64_t call : {3, 5, 9}) caller.Start(call, Named(Concat("r", call)));
  for (const char* id : {"r9", "r3", "r5"}) Give(*worker.Sink(id), 0);
  Give(*worker.Sink("r3"), 1);
  worker.hub.Flush();
  EXPECT_THAT(Summary(caller.Read()), ElementsAre(Pair(9, 1), Pair(3, 2), Pair(5, 1)));
}

TEST(ServeHub, ACallWithoutCreditWaitsWithItsEndAndHoldsNobodyUp) {
  ScriptedWorker worker;
  Caller caller(*worker.stub);
  caller.Start(1, Named("slow"), /*credit=*/2);
  caller.Start(2, Named("quick"));
  const auto slow = worker.Sink("slow"), quick = worker.Sink("quick");
  slow->OnStarted(0);
  for (int i = 0; i < 3; ++i) {
    Give(*slow, static_cast<uint32_t>(2 * i), 2);  // the first of them use its credit up
    Give(*quick, static_cast<uint32_t>(i));
    worker.hub.Flush();
    ASSERT_TRUE(
        caller.ReadUntil([&] { return caller.answers[2].tokens.size() == static_cast<size_t>(i) + 1; }));
  }
  slow->OnFinish({});
  quick->OnFinish({});
  worker.hub.Flush();
  ASSERT_TRUE(caller.ReadToEndOf(2));
  EXPECT_EQ(caller.answers[1].tokens.size(), 2u);
  EXPECT_FALSE(caller.answers[1].is_over());
  caller.Credit(1, 4);
  ASSERT_TRUE(caller.ReadToEndOf(1));
  EXPECT_EQ(caller.answers[1].tokens.size(), 6u);
  EXPECT_TRUE(caller.answers[1].has_finished);
}

TEST(ServeHub, ACallIsFullAloneUntilItsCallerMakesRoom) {
  ScriptedWorker worker({.execute = {.buffer_logprobs = 8}});
  Caller caller(*worker.stub);
  caller.Start(1, Named("slow"), /*credit=*/0);
  caller.Start(2, Named("quick"), /*credit=*/0);
  const auto slow = worker.Sink("slow"), quick = worker.Sink("quick");
  Give(*slow, 0, 9);
  Give(*quick, 0, 8);
  worker.hub.Flush();
  EXPECT_TRUE(slow->is_full());
  EXPECT_FALSE(quick->is_full());
  caller.Credit(1, 1);
  ASSERT_TRUE(caller.ReadUntil([&] { return caller.answers[1].tokens.size() == 9; }));
  EXPECT_FALSE(slow->is_full());
  EXPECT_GT(worker.wakes, 0);
}

TEST(ServeHub, ACallEndsByItselfWithCodeReasonAndAMessageOfAnyBytes) {
  ScriptedWorker worker;
  Caller caller(*worker.stub);
  caller.Start(1, Named("fails"));
  caller.Start(2, Named("goes on"));
  const auto fails = worker.Sink("fails"), goes_on = worker.Sink("goes on");
  Give(*fails, 0);
  fails->OnFinish(Failed(FinishReason::kError, WithReason(Internal("logit \xff"), "numeric_error")));
  Give(*goes_on, 0);
  goes_on->OnFinish({});
  worker.hub.Flush();
  ASSERT_TRUE(caller.ReadToEndOf(1) && caller.ReadToEndOf(2));
  EXPECT_EQ(caller.answers[1].tokens.size(), 1u) << "what it had goes before";
  EXPECT_EQ(caller.answers[1].error, WithReason(Internal("logit \xff"), "numeric_error"));
  EXPECT_TRUE(caller.answers[2].has_finished);
}

TEST(ServeHub, OfACancelledCallNothingMoreIsSent) {
  ScriptedWorker worker;
  Caller caller(*worker.stub);
  caller.Start(1, Named("gone"));
  caller.Start(2, Named("stays"));
  const auto gone = worker.Sink("gone"), stays = worker.Sink("stays");
  Give(*gone, 0);
  caller.Cancel(1);
  AwaitClosed(*gone);
  caller.Cancel(1);  // and what comes late for it is passed over
  caller.Credit(1, 5);
  Give(*gone, 1);
  gone->OnFinish(Failed(FinishReason::kCancelled, Cancelled("closed")));
  Give(*stays, 0);
  worker.hub.Flush();
  EXPECT_THAT(Summary(caller.Read()), ElementsAre(Pair(2, 1)));
  stays->OnFinish({});
  worker.hub.Flush();
  caller.WritesDone();
  EXPECT_EQ(caller.Finish(), Status());
  EXPECT_THAT(caller.answers, ElementsAre(Pair(2, ::testing::_)));
}

TEST(ServeHub, WhatIsWrongWithARequestIsTheErrorOfItsCallAlone) {
  ScriptedWorker worker;
  Caller caller(*worker.stub);
  v1::ExecuteRequest other = Named("other"), unseeded = Named("unseeded");
  other.set_instance("the one before");
  unseeded.mutable_sampling()->clear_seed();
  caller.StartWith(1, "\xff\xff no message");
  caller.Start(2, other);
  caller.Start(3, unseeded);
  caller.Start(4, Named("right"));
  for (uint64_t call : {1, 2, 3}) ASSERT_TRUE(caller.ReadToEndOf(call));
  EXPECT_EQ(Reason(caller.answers[1].error), "invalid_value");
  EXPECT_EQ(caller.answers[2].error.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(caller.answers[2].error), "wrong_instance");
  EXPECT_THAT(Message(caller.answers[3].error), HasSubstr("seed"));
  worker.Sink("right")->OnFinish({});
  worker.hub.Flush();
  EXPECT_TRUE(caller.ReadToEndOf(4));
}

TEST(ServeHub, ATimeoutBecomesADeadlineAndWithoutOneThereIsNone) {
  ScriptedWorker worker;
  Caller caller(*worker.stub);
  const MonoTime before = RealClock().Now();
  caller.Start(1, Named("timed"), kMuch, /*timeout=*/100);
  caller.Start(2, Named("endless"), kMuch, /*timeout=*/1e300);
  caller.Start(3, Named("past"), kMuch, /*timeout=*/-5);
  caller.Start(4, Named("untimed"));
  const auto deadline = worker.Spec("timed").deadline;
  ASSERT_TRUE(deadline.has_value());
  EXPECT_GE(*deadline, before + std::chrono::seconds(100));
  EXPECT_LE(*deadline, RealClock().Now() + std::chrono::seconds(100));
  EXPECT_EQ(worker.Spec("endless").deadline, std::nullopt);
  EXPECT_LE(*worker.Spec("past").deadline, RealClock().Now());
  EXPECT_EQ(worker.Spec("untimed").deadline, std::nullopt);
}

TEST(ServeHub, CallsWhoseNumbersDoNotRiseEndTheStreamAndAllOfIt) {
  for (const uint64_t again : {7, 6}) {
    ScriptedWorker worker;
    Caller caller(*worker.stub);
    caller.Start(7, Named("first"));
    const auto first = worker.Sink("first");
    caller.Start(again, Named("second"));
    const Status end = caller.Finish();
    EXPECT_EQ(end.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(end), HasSubstr(Concat("call ", again, " comes after call 7")));
    AwaitClosed(*first);
  }
}

TEST(ServeHub, MoreCallsThanAStreamMayHaveAreRefusedUntilOneHasEnded) {
  ScriptedWorker worker({.max_calls = 2});
  Caller caller(*worker.stub);
  for (uint64_t call : {1, 2, 3}) caller.Start(call, Named(Concat("r", call)));
  ASSERT_TRUE(caller.ReadToEndOf(3));
  EXPECT_EQ(caller.answers[3].error.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(caller.answers[3].error), "overloaded");
  EXPECT_THAT(Message(caller.answers[3].error), HasSubstr("2 calls"));
  worker.Sink("r1")->OnFinish({});
  worker.hub.Flush();
  ASSERT_TRUE(caller.ReadToEndOf(1));
  caller.Start(4, Named("r4"));
  EXPECT_NE(worker.Sink("r4"), nullptr);
}

TEST(ServeHub, RefusalsThatNobodyReadsEndTheStreamWhenTheyAreTooMany) {
  ScriptedWorker worker({.max_calls = 2});
  Caller caller(*worker.stub);
  caller.StartMany(10, Named("r"));
  const Status end = caller.Finish();
  EXPECT_EQ(end.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(end), HasSubstr("does not read"));
  AwaitClosed(*worker.Sink("r"));
}

TEST(ServeHub, ACallerThatIsGoneHasCancelledAllItsCallsAndNoOthers) {
  ScriptedWorker worker;
  Caller gone(*worker.stub), stays(*worker.stub);
  gone.Start(1, Named("a"));
  gone.Start(2, Named("b"), /*credit=*/0);
  stays.Start(1, Named("c"));
  const auto a = worker.Sink("a"), b = worker.Sink("b"), c = worker.Sink("c");
  gone.TryCancel();
  AwaitClosed(*a);
  AwaitClosed(*b);
  EXPECT_FALSE(c->is_closed());
  a->OnFinish(Failed(FinishReason::kCancelled, Cancelled("closed")));
  c->OnFinish({});
  worker.hub.Flush();
  EXPECT_TRUE(stays.ReadToEndOf(1));
}

TEST(ServeHub, AStreamWhoseCallerHasNoMoreEndsWithItsLastCall) {
  ScriptedWorker worker;
  Caller caller(*worker.stub);
  caller.Start(1, Named("r"));
  caller.WritesDone();
  const auto sink = worker.Sink("r");
  Give(*sink, 0);
  sink->OnFinish({});
  worker.hub.Flush();
  EXPECT_EQ(caller.Finish(), Status());
  EXPECT_TRUE(caller.answers[1].has_finished);
  Caller idle(*worker.stub);
  idle.WritesDone();
  EXPECT_EQ(idle.Finish(), Status());
}

TEST(ServeHub, AStoppedHubEndsItsStreamsWhenTheirCallsHave) {
  ScriptedWorker worker;
  Caller caller(*worker.stub);
  caller.Start(1, Named("r"));
  const auto sink = worker.Sink("r");
  worker.hub.Stop();
  Give(*sink, 0);
  sink->OnFinish({});
  worker.hub.Flush();
  const Status end = caller.Finish();
  EXPECT_EQ(end.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(end), "draining");
  EXPECT_TRUE(caller.answers[1].has_finished);
  Caller late(*worker.stub);
  EXPECT_EQ(Reason(late.Finish()), "draining");
}

TEST(ServeHub, ALongAnswerLeavesRoomForTheOthersInEachMessage) {
  ScriptedWorker worker;
  Caller caller(*worker.stub);
  caller.Start(1, Named("long"), 1 << 30);
  caller.Start(2, Named("short"));
  const auto longer = worker.Sink("long"), shorter = worker.Sink("short");
  for (uint32_t i = 0; i < 5; ++i) Give(*longer, i * 9000, 9000);  // each too large for a message with others
  Give(*shorter, 0);
  worker.hub.Flush();
  EXPECT_THAT(Summary(caller.Read()), ElementsAre(Pair(1, 9000)));
  EXPECT_THAT(Summary(caller.Read()), ElementsAre(Pair(2, 1), Pair(1, 9000)));
}

v1::ExecuteRequest Seeded(uint64_t seed, uint32_t tokens) {
  v1::ExecuteRequest request = Request(tokens);
  request.mutable_sampling()->set_seed(seed);
  return request;
}

TEST(ServeHub, ManyCallsAtOnceGetTheAnswersThatEachWouldGetAlone) {
  const auto seed = std::random_device()();
  std::mt19937 random(seed);
  FakeWorker worker({}, {.execute = {.buffer_logprobs = 64}});
  Caller caller(*worker.stub);
  constexpr uint64_t kCalls = 40;
  std::map<uint64_t, uint32_t> lengths;
  std::map<uint64_t, uint32_t> owed;  // credit
  std::set<uint64_t> cancelled;
  for (uint64_t call = 1; call <= kCalls; ++call) {
    lengths[call] = 1 + random() % 200;
    owed[call] = random() % 2 == 0 ? 250 : 0;
    ASSERT_TRUE(caller.Start(call, Seeded(call, lengths[call]), 250 - owed[call]));
    if (random() % 5 == 0) cancelled.insert(call);
  }
  for (const uint64_t call : cancelled) caller.Cancel(call);
  for (const auto& [call, credit] : owed) {
    for (uint32_t given = 0; given < credit; given += 50) caller.Credit(call, 50);
  }
  caller.WritesDone();
  EXPECT_EQ(caller.Finish(), Status()) << "seed " << seed;
  for (uint64_t call = 1; call <= kCalls; ++call) {
    if (cancelled.contains(call) && !caller.answers[call].is_over()) continue;
    EXPECT_EQ(caller.answers[call].error, Status()) << "call " << call << ", seed " << seed;
    std::vector<int32_t> expected;
    for (uint32_t i = 0; i < lengths[call]; ++i)
      expected.push_back(FakeExecutor::AnswerToken(call, i, kVocab));
    EXPECT_EQ(caller.answers[call].tokens, expected) << "call " << call << ", seed " << seed;
  }
  EXPECT_TRUE(worker.AwaitIdle());
}

TEST(ServeHub, CancellingACallFreesItsSequenceAlsoWhereItIsPaused) {
  FakeWorker worker({}, {.execute = {.buffer_logprobs = 100}});
  Caller caller(*worker.stub);
  caller.Start(1, Request(0), /*credit=*/0);
  ASSERT_TRUE(worker.AwaitPaused());
  caller.Start(2, Request(0));
  ASSERT_TRUE(caller.ReadUntil([&] { return caller.answers[2].tokens.size() > 500; }));
  caller.Cancel(1);
  caller.Cancel(2);
  EXPECT_TRUE(worker.AwaitIdle());
  EXPECT_EQ(worker.engine.Stats().cancelled, 2u);
}

TEST(ServeHub, ADeadlineEndsACallAndADrainHandsTheOthersOver) {
  FakeWorker worker({}, {}, /*inbox=*/64, /*drain_seconds=*/0);
  Caller caller(*worker.stub);
  caller.Start(1, Request(0), 1 << 30, /*timeout=*/0.02);
  caller.Start(2, Request(0), 1 << 30);
  ASSERT_TRUE(caller.ReadToEndOf(1));
  EXPECT_EQ(caller.answers[1].error.code(), StatusCode::kDeadlineExceeded);
  worker.service.Drain([] {});
  ASSERT_TRUE(caller.ReadToEndOf(2));
  EXPECT_EQ(Reason(caller.answers[2].error), "draining");
  EXPECT_EQ(caller.answers[2].tokens.size(),
            worker.engine.Stats().generated_tokens - caller.answers[1].tokens.size());
  caller.Start(3, Request(1));
  ASSERT_TRUE(caller.ReadToEndOf(3)) << "the process stays";
  EXPECT_EQ(Reason(caller.answers[3].error), "draining");
}

}  // namespace
}  // namespace terrace
