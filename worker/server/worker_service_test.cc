// The gRPC service over an engine without a model. What needs a real one is in worker_server_test.cc.
#include "worker/server/worker_service.h"

#include <cmath>
#include <functional>
#include <future>
#include <limits>
#include <numeric>
#include <set>

#include "base/fake_clock.h"
#include "base/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "text/block_key.h"
#include "worker/engine/step_gate.h"
#include "worker/server/proto_convert.h"
#include "worker/server/testing_worker.h"
#include "worker/speculative/fake_drafter.h"

namespace terrace {
namespace {

// Reads a whole call.
struct Answer {
  std::vector<int32_t> tokens, scored;  // tokens: behind what was resumed
  std::vector<v1::GeneratedToken> generated;
  std::string draft_record;  // the last one
  v1::ExecuteFinished finished;
  Status status;
};

Answer Finish(grpc::ClientContext& context, grpc::ClientReader<v1::ExecuteEvent>& reader,
              size_t resumed = 0) {
  Answer answer;
  v1::ExecuteEvent event;
  while (reader.Read(&event)) {
    if (event.has_tokens()) {
      EXPECT_EQ(event.tokens().first_index(), resumed + answer.tokens.size());
    }
    if (!event.tokens().draft_record().empty()) answer.draft_record = event.tokens().draft_record();
    for (const auto& token : event.tokens().tokens()) {
      answer.tokens.push_back(token.token());
      answer.generated.push_back(token);
    }
    if (event.has_prompt_scores()) {
      EXPECT_EQ(event.prompt_scores().first_index(), answer.scored.size() + 1);
    }
    for (const auto& score : event.prompt_scores().scores()) answer.scored.push_back(score.token());
    if (event.has_finished()) answer.finished = event.finished();
  }
  answer.status = FromGrpcStatus(reader.Finish(), context);
  return answer;
}

Answer Execute(FakeWorker& worker, const v1::ExecuteRequest& request) {
  grpc::ClientContext context;
  auto reader = worker.stub->Execute(&context, request);
  return Finish(context, *reader, static_cast<size_t>(request.resume_tokens_size()));
}

// `request`, of which `tokens` have come.
v1::ExecuteRequest Resumed(v1::ExecuteRequest request, const std::vector<int32_t>& tokens) {
  request.mutable_resume_tokens()->Assign(tokens.begin(), tokens.end());
  return request;
}

TEST(WorkerService, AnAnswerHasItsTokensInOrderAndItsScoresFirst) {
  FakeWorker worker;
  v1::ExecuteRequest request = Request(200);
  for (int i = 2; i < 100; ++i) request.add_prompt_tokens(i);
  request.set_score_prompt(true);
  const Answer answer = Execute(worker, request);
  EXPECT_EQ(answer.status, Status());
  std::vector<int32_t> scored;
  for (int i = 2; i < 100; ++i) scored.push_back(i);
  EXPECT_EQ(answer.tokens, ExpectedAnswer(200));
  EXPECT_EQ(answer.scored, scored);
  EXPECT_EQ(answer.finished.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(answer.finished.prompt_tokens(), 99u);
  EXPECT_EQ(answer.finished.generated_tokens(), 200u);
}

TEST(WorkerService, WrongRequestsAreRefusedWithCodeAndReason) {
  FakeWorker worker;
  const struct {
    const char* name;
    std::function<void(v1::ExecuteRequest&)> change;
    std::string reason, names;
  } cases[] = {
      {"no prompt", [](auto& r) { r.clear_prompt_tokens(); }, "invalid_value", "prompt"},
      {"token id", [](auto& r) { r.add_prompt_tokens(-1); }, "invalid_value", "prompt[1] is -1"},
      {"stop token", [](auto& r) { r.add_stop_tokens(kVocab); }, "invalid_value", "stop_tokens[0]"},
      {"resumed token", [](auto& r) { r.add_resume_tokens(-1); }, "invalid_value", "resume[0] is -1"},
      {"resumed whole",
       [](auto& r) {
         r = Resumed(r, {1, 2, 3, 4});
       },
       "invalid_value", "resume has 4 tokens and the answer at most 4"},
      {"resumed past its end",
       [](auto& r) {
         r = Resumed(r, {1, 2});
         r.add_stop_tokens(2);
       },
       "invalid_value", "resume[1] is 2, which ends the answer"},
      {"drafted token", [](auto& r) { r.add_draft_tokens(kVocab); }, "invalid_value", "draft[0] is 1000"},
      {"too long", [](auto& r) { r.set_max_tokens(1 << 20); }, "context_length_exceeded", "1048577"},
      {"top_logprobs", [](auto& r) { r.set_top_logprobs(21); }, "invalid_value", "top_logprobs is 21"},
      {"priority", [](auto& r) { r.set_priority(101); }, "invalid_value", "priority is 101"},
      {"cache_salt", [](auto& r) { r.set_cache_salt(std::string(257, 's')); }, "invalid_value", "cache_salt"},
      {"no seed", [](auto& r) { r.mutable_sampling()->clear_seed(); }, "invalid_value", "seed"},
      {"no sampling", [](auto& r) { r.clear_sampling(); }, "invalid_value", "seed"},
      {"temperature", [](auto& r) { r.mutable_sampling()->set_temperature(2.5); }, "invalid_value",
       "temperature"},
      {"NaN", [](auto& r) { r.mutable_sampling()->set_temperature(NAN); }, "invalid_value", "temperature"},
      {"top_k", [](auto& r) { r.mutable_sampling()->set_top_k(-1); }, "invalid_value", "top_k"},
      {"top_p", [](auto& r) { r.mutable_sampling()->set_top_p(0); }, "invalid_value", "top_p"},
      {"min_p", [](auto& r) { r.mutable_sampling()->set_min_p(1.5); }, "invalid_value", "min_p"},
      {"repetition", [](auto& r) { r.mutable_sampling()->set_repetition_penalty(0); }, "invalid_value",
       "repetition"},
      {"presence", [](auto& r) { r.mutable_sampling()->set_presence_penalty(3); }, "invalid_value",
       "presence"},
      {"frequency", [](auto& r) { r.mutable_sampling()->set_frequency_penalty(-3); }, "invalid_value",
       "frequency"},
      {"bias", [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[1] = 101; }, "invalid_value",
       "logit_bias"},
      {"bias of no token", [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[-4] = 1; },
       "invalid_value", "logit_bias"},
  };
  for (const auto& c : cases) {
    v1::ExecuteRequest request = Request(4);
    c.change(request);
    const Status status = Execute(worker, request).status;
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.name;
    EXPECT_EQ(Reason(status), c.reason) << c.name;
    EXPECT_THAT(Message(status), ::testing::HasSubstr(c.names)) << c.name;
  }
  EXPECT_TRUE(worker.engine.Stats().is_idle);
}

TEST(WorkerService, CancellingACallFreesItsSequence) {
  FakeWorker worker;
  grpc::ClientContext context;
  auto reader = worker.stub->Execute(&context, Request(0));
  v1::ExecuteEvent event;
  ASSERT_TRUE(reader->Read(&event));
  context.TryCancel();
  EXPECT_EQ(Finish(context, *reader).status.code(), StatusCode::kCancelled);
  EXPECT_TRUE(worker.AwaitIdle());
  EXPECT_EQ(worker.engine.Stats().cancelled, 1u);
}

TEST(WorkerService, ADeadlineEndsTheSequence) {
  FakeWorker worker;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  auto reader = worker.stub->Execute(&context, Request(0));
  EXPECT_EQ(Finish(context, *reader).status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(worker.AwaitUpdate([](const v1::WorkerUpdate& update) {
    return update.load().running_sequences() == 0 && update.load().waiting_sequences() == 0;
  }));
}

TEST(WorkerService, ADeadlineOfACallBecomesOneOfTheMonotonicClock) {
  const auto wall = std::chrono::system_clock::time_point(std::chrono::hours(1));
  const MonoTime now = MonoTime(std::chrono::seconds(100));
  EXPECT_EQ(ToMonoDeadline(wall + std::chrono::seconds(5), wall, now), now + std::chrono::seconds(5));
  EXPECT_EQ(ToMonoDeadline(wall - std::chrono::seconds(5), wall, now), now - std::chrono::seconds(5));
  EXPECT_EQ(ToMonoDeadline(std::chrono::system_clock::time_point::max(), wall, now), std::nullopt);
}

TEST(WorkerService, ARequestBecomesASequenceWithAllThatItAsksFor) {
  v1::ExecuteRequest request = Request(5);
  request.set_priority(-7);
  request.set_cache_salt("tenant");
  request.add_resume_tokens(8);
  request.add_draft_tokens(9);
  request.add_draft_tokens(10);
  request.set_signals(true);
  request.mutable_speculation()->set_max_tokens(0);
  const DraftRecord record = {.drafts = {.right = 1.5, .trials = 2, .prior_trials = 0.5, .wait = 3}};
  v1::DraftRecord told;
  ToProto(record, told);
  EXPECT_FALSE(told.has_branches());
  request.set_draft_record(told.SerializeAsString());
  const auto spec = ToSequenceSpec(request);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->draft_record, record);
  EXPECT_EQ(ToSequenceSpec(Request(5))->draft_record, std::nullopt);
  EXPECT_EQ(spec->speculation, 0u);
  EXPECT_EQ(ToSequenceSpec(Request(5))->speculation, std::nullopt);
  EXPECT_EQ(spec->priority, -7);
  EXPECT_EQ(spec->cache_salt, "tenant");
  EXPECT_EQ(spec->max_tokens, 5u);
  EXPECT_EQ(spec->resume, std::vector<int32_t>{8});
  EXPECT_EQ(spec->draft, (std::vector<int32_t>{9, 10}));
  EXPECT_TRUE(spec->signals);
}

// The router passes it on unread: it must not end the answer of a client.
TEST(WorkerService, ADraftRecordThatCannotBeUsedIsAsNone) {
  v1::DraftRecord impossible, no_number, too_large;
  impossible.mutable_drafts()->set_right(1);  // of no trial
  no_number.mutable_branches()->set_trials(std::numeric_limits<float>::quiet_NaN());
  too_large.mutable_drafts()->set_trials(1e30f);
  for (const std::string& bytes : {std::string("\xff"), impossible.SerializeAsString(),
                                   no_number.SerializeAsString(), too_large.SerializeAsString()}) {
    v1::ExecuteRequest request = Request(4);
    request.set_draft_record(bytes);
    const auto spec = ToSequenceSpec(request);
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_FALSE(spec->draft_record.has_value());
  }
}

std::unique_ptr<Drafter> RightDrafter() {
  return std::make_unique<FakeDrafter>(
      FakeDrafter::Options{.answer =
                               [](const DraftRequest& request, uint32_t index) {
                                 return FakeExecutor::AnswerToken(request.sampling->seed, index, kVocab);
                               },
                           .vocab_size = kVocab});
}

TEST(WorkerService, AnAnswerTellsWithItsTokensWhatIsKnownOfItsDraftsAndAnotherWorkerGoesOnWithIt) {
  FakeWorker first({}, {}, /*inbox=*/64, /*drain_seconds=*/600, RightDrafter());
  const std::vector<int32_t> whole = ExpectedAnswer(200);
  const Answer answer = Execute(first, Request(200));
  EXPECT_EQ(answer.status, Status());
  EXPECT_EQ(answer.tokens, whole);
  EXPECT_GT(answer.finished.accepted_speculated_tokens(), 0u);
  v1::DraftRecord record;
  ASSERT_TRUE(record.ParseFromString(answer.draft_record));
  EXPECT_GT(record.drafts().trials(), 0);
  EXPECT_EQ(record.drafts().right(), record.drafts().trials());
  EXPECT_LE(answer.draft_record.size(), 256u) << "what routers take";

  FakeWorker second;
  v1::ExecuteRequest rest = Resumed(Request(200), {whole.begin(), whole.begin() + 50});
  rest.set_draft_record(answer.draft_record);
  const Answer resumed = Execute(second, rest);
  EXPECT_EQ(resumed.status, Status());
  EXPECT_EQ(resumed.tokens, std::vector<int32_t>(whole.begin() + 50, whole.end()));
  EXPECT_EQ(resumed.draft_record, "") << "it drafts nothing";
}

TEST(WorkerService, ItsDescriptionHasWhatWasDraftedUntilThen) {
  FakeWorker worker({}, {}, /*inbox=*/64, /*drain_seconds=*/600, RightDrafter());
  EXPECT_EQ(Execute(worker, Request(200)).status, Status());
  worker.engine.Stop();  // nothing is counted any more
  const SpeculationStats stats = worker.engine.Stats().speculation;
  grpc::ClientContext context;
  v1::WorkerDescription description;
  ASSERT_TRUE(worker.stub->Describe(&context, {}, &description).ok());
  const v1::SpeculationTotals& totals = description.speculation();
  EXPECT_EQ(totals.drafter(), "fake");
  EXPECT_THAT(totals.proposed(), ::testing::ElementsAreArray(stats.proposed));
  EXPECT_THAT(totals.verified(), ::testing::ElementsAreArray(stats.verified));
  EXPECT_THAT(totals.accepted(), ::testing::ElementsAreArray(stats.accepted));
  EXPECT_GT(SpeculationStats::Sum(stats.accepted), 0u);
  EXPECT_EQ(totals.passes(), stats.passes);
  EXPECT_EQ(totals.failures(), 0u);
  EXPECT_EQ(totals.drafting_seconds(), stats.drafting_seconds);
  EXPECT_EQ(totals.saved_seconds(), stats.saved_seconds);

  FakeWorker plain;
  grpc::ClientContext other;
  ASSERT_TRUE(plain.stub->Describe(&other, {}, &description).ok());
  EXPECT_FALSE(description.has_speculation()) << "nobody drafts";
}

TEST(WorkerService, AnAnswerGoesOnBehindWhatIsResumedAndTakesOfADraftWhatIsRight) {
  FakeWorker worker;
  const std::vector<int32_t> whole = ExpectedAnswer(200);
  v1::ExecuteRequest request = Resumed(Request(200), {whole.begin(), whole.begin() + 50});
  for (size_t i = 50; i < 80; ++i) request.add_draft_tokens(whole[i]);
  for (int i = 0; i < 300; ++i) request.add_draft_tokens((whole[80] + 1) % static_cast<int>(kVocab));
  request.set_signals(true);
  const Answer answer = Execute(worker, request);
  EXPECT_EQ(answer.status, Status());
  EXPECT_EQ(answer.tokens, std::vector<int32_t>(whole.begin() + 50, whole.end()));
  EXPECT_EQ(answer.finished.generated_tokens(), 200u);
  EXPECT_EQ(answer.finished.prompt_tokens(), 1u);
  EXPECT_EQ(answer.finished.accepted_draft_tokens(), 30u);
  for (const v1::GeneratedToken& token : answer.generated) {
    EXPECT_EQ(token.margin(), FakeExecutor::kMargin);
    EXPECT_EQ(token.entropy(), FakeExecutor::kEntropy);
  }
  ASSERT_TRUE(worker.AwaitIdle());
  const std::string metrics = worker.metrics.Render(worker.engine.Stats(), RealClock().Now());
  EXPECT_THAT(metrics, ::testing::HasSubstr("terrace_engine_draft_tokens_total{result=\"accepted\"} 30\n"));
  EXPECT_THAT(metrics, ::testing::HasSubstr("terrace_engine_draft_tokens_total{result=\"rejected\"} 120\n"));
}

// A buffer of which a few tokens are too many.
constexpr ServeHub::Options kSmallBuffer = {.execute = {.buffer_logprobs = 100}};

TEST(WorkerService, AClientThatStopsReadingPausesItsOwnSequenceUntilItReadsAgain) {
  FakeWorker worker({}, kSmallBuffer);
  grpc::ClientContext context;
  auto stalled = worker.stub->Execute(&context, Request(1000));
  ASSERT_TRUE(worker.AwaitPaused());
  // The bound, the token that passed it, and what the transport took.
  const uint64_t generated = worker.engine.Stats().generated_tokens;
  EXPECT_GE(generated, kSmallBuffer.execute.buffer_logprobs);
  EXPECT_LE(generated, 2 * kSmallBuffer.execute.buffer_logprobs);
  EXPECT_THAT(worker.metrics.Render(worker.engine.Stats(), RealClock().Now()),
              ::testing::HasSubstr("terrace_engine_requests_paused 1\n"));

  EXPECT_EQ(Execute(worker, Request(1000)).tokens, ExpectedAnswer(1000));
  ASSERT_TRUE(worker.AwaitUpdate([](const auto& update) { return update.load().running_sequences() == 1; }));
  EXPECT_EQ(worker.engine.Stats().paused, 1u);
  EXPECT_EQ(worker.engine.Stats().generated_tokens, generated + 1000);

  const Answer answer = Finish(context, *stalled);
  EXPECT_EQ(answer.status, Status());
  EXPECT_EQ(answer.tokens, ExpectedAnswer(1000));
}

TEST(WorkerService, ScoresOfAnyLengthPassThroughASmallBuffer) {
  FakeWorker worker({}, kSmallBuffer);
  v1::ExecuteRequest request = Request(0);
  request.set_score_prompt(true);
  for (int i = 1; i < 5000; ++i) request.add_prompt_tokens(i % kVocab);
  grpc::ClientContext context;
  auto reader = worker.stub->Execute(&context, request);
  ASSERT_TRUE(worker.AwaitPaused());
  const Answer answer = Finish(context, *reader);
  EXPECT_EQ(answer.status, Status());
  EXPECT_EQ(answer.scored,
            std::vector<int32_t>(request.prompt_tokens().begin() + 1, request.prompt_tokens().end()));
}

TEST(WorkerService, CancellingAPausedCallFreesItsSequence) {
  FakeWorker worker({}, kSmallBuffer);
  grpc::ClientContext context;
  auto reader = worker.stub->Execute(&context, Request(0));
  ASSERT_TRUE(worker.AwaitPaused());
  context.TryCancel();
  EXPECT_TRUE(worker.AwaitIdle());
  EXPECT_EQ(worker.engine.Stats().cancelled, 1u);
  EXPECT_EQ(Finish(context, *reader).status.code(), StatusCode::kCancelled);
}

TEST(WorkerService, ADeadlineEndsAPausedSequence) {
  FakeWorker worker({}, kSmallBuffer);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  auto reader = worker.stub->Execute(&context, Request(0));
  ASSERT_TRUE(worker.AwaitUpdate([&](const auto&) {
    const EngineStats stats = worker.engine.Stats();
    return stats.cancelled == 1 && stats.running == 0;
  }));
  EXPECT_LE(worker.engine.Stats().generated_tokens, 2 * kSmallBuffer.execute.buffer_logprobs);
  EXPECT_EQ(Finish(context, *reader).status.code(), StatusCode::kDeadlineExceeded);
}

TEST(WorkerService, StoppingTheEngineEndsAPausedCallWithWhatItHas) {
  FakeWorker worker({}, kSmallBuffer);
  grpc::ClientContext context;
  auto reader = worker.stub->Execute(&context, Request(0));
  ASSERT_TRUE(worker.AwaitPaused());
  worker.engine.Stop();
  const Answer answer = Finish(context, *reader);
  EXPECT_EQ(answer.status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(answer.tokens, ExpectedAnswer(static_cast<int>(worker.engine.Stats().generated_tokens)));
}

TEST(WorkerService, ANumericErrorEndsOneAnswerOnlyAndKeepsItsTokens) {
  FakeWorker worker({.fail_sequence = [](const PlannedSequence& part) {
    return part.sampling->seed == 13 && part.sample_index == 2
               ? WithReason(Internal("logit 5 is NaN"), "numeric_error")
               : Status();
  }});
  v1::ExecuteRequest request = Request(10);
  request.mutable_sampling()->set_seed(13);
  const Answer failed = Execute(worker, request);
  EXPECT_EQ(failed.status.code(), StatusCode::kInternal);
  EXPECT_EQ(Reason(failed.status), "numeric_error");
  EXPECT_EQ(failed.tokens.size(), 2u);
  EXPECT_EQ(Execute(worker, Request(10)).tokens.size(), 10u);
  ASSERT_TRUE(worker.AwaitIdle());
  const std::string metrics = worker.metrics.Render(worker.engine.Stats(), RealClock().Now());
  EXPECT_THAT(metrics, ::testing::HasSubstr("terrace_numeric_errors_total 1\n"));
  EXPECT_THAT(metrics, ::testing::HasSubstr("terrace_engine_sequences_total{outcome=\"error\"} 1\n"));
  EXPECT_THAT(metrics, ::testing::HasSubstr("terrace_engine_sequences_total{outcome=\"length\"} 1\n"));
  EXPECT_THAT(metrics, ::testing::HasSubstr("terrace_engine_generation_tokens_total 12\n"));
}

TEST(WorkerService, AFullInboxIsOverloadNotAQueue) {
  StepGate gate;
  FakeWorker worker({.before_step = [&](const StepPlan&) { gate.Pass(); }}, {}, /*inbox=*/1);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::ExecuteEvent>>> readers;
  // The first one is in a step that does not end, so of the others one waits and one is refused, whichever
  // came first.
  for (int i = 0; i < 3; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(worker.stub->Execute(contexts.back().get(), Request(2)));
    if (i == 0) gate.AwaitStep(1);
  }
  std::vector<std::future<Answer>> answers;
  for (int i = 0; i < 3; ++i) {
    answers.push_back(std::async(std::launch::async, [&, i] { return Finish(*contexts[i], *readers[i]); }));
  }
  ASSERT_TRUE(worker.AwaitUpdate([&](const v1::WorkerUpdate&) {
    return worker.metrics.Render(worker.engine.Stats(), RealClock().Now())
               .find("terrace_engine_sequences_total{outcome=\"refused\"} 1\n") != std::string::npos;
  }));
  gate.Open();
  int refused = 0;
  for (auto& future : answers) {
    const Answer answer = future.get();
    if (answer.status.ok()) continue;
    ++refused;
    EXPECT_EQ(answer.status.code(), StatusCode::kResourceExhausted);
    EXPECT_EQ(Reason(answer.status), "overloaded");
  }
  EXPECT_EQ(refused, 1);
}

TEST(WorkerService, WatchNumbersItsUpdatesWithoutGapAndTellsEveryStateAtOnce) {
  FakeWorker worker;
  grpc::ClientContext context;
  auto reader = worker.stub->Watch(&context, {});
  v1::WorkerUpdate update;
  ASSERT_TRUE(reader->Read(&update));
  EXPECT_EQ(update.sequence(), 0u);
  EXPECT_EQ(update.state(), v1::WORKER_STATE_STARTING);
  const uint64_t epoch = update.epoch();
  uint64_t next = 1;
  const auto await_state = [&](v1::WorkerState state) {
    do {
      if (!reader->Read(&update)) return false;
      EXPECT_EQ(update.sequence(), next++);
      EXPECT_EQ(update.epoch(), epoch);
    } while (update.state() != state);
    return true;
  };
  worker.service.SetReady();
  EXPECT_TRUE(await_state(v1::WORKER_STATE_READY));
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(await_state(v1::WORKER_STATE_READY));  // the periodic ones
  worker.service.Drain([] {});
  EXPECT_TRUE(await_state(v1::WORKER_STATE_DRAINING));
  worker.service.SetReady();  // a drained worker stays drained
  EXPECT_EQ(worker.service.state(), v1::WORKER_STATE_DRAINING);

  grpc::ClientContext second_context;
  auto second = worker.stub->Watch(&second_context, {});
  ASSERT_TRUE(second->Read(&update));
  EXPECT_EQ(update.sequence(), 0u);
  EXPECT_EQ(update.epoch(), epoch);
  worker.service.StopStreams();
  while (second->Read(&update)) {
  }
  EXPECT_EQ(second->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(WorkerService, WatchTellsThatTheEngineStallsWhileThereIsWork) {
  FakeClock long_ago;  // by which the engine's last step is long over
  FakeWorker worker({}, {}, /*inbox=*/64, /*drain_seconds=*/600, /*drafter=*/nullptr, long_ago);
  const auto says = [](bool is_stalled) {
    return [is_stalled](const v1::WorkerUpdate& update) { return update.is_stalled() == is_stalled; };
  };
  EXPECT_TRUE(worker.AwaitUpdate(says(false))) << "it has nothing to do";
  grpc::ClientContext context;
  const auto reader = worker.stub->Execute(&context, Request(1 << 19));
  EXPECT_TRUE(worker.AwaitUpdate(says(true)));
  context.TryCancel();
  EXPECT_EQ(Finish(context, *reader).status.code(), StatusCode::kCancelled);
  EXPECT_TRUE(worker.AwaitUpdate(says(false)));
}

TEST(WorkerService, WatchFollowsThePrefixCacheBlockByBlock) {
  FakeWorker worker;
  grpc::ClientContext context;
  auto reader = worker.stub->Watch(&context, {});
  std::set<uint64_t> held;
  const auto follow = [&] {
    v1::WorkerUpdate update;
    if (!reader->Read(&update)) return false;
    const v1::PrefixDelta& delta = update.prefixes();
    EXPECT_EQ(delta.is_snapshot(), update.sequence() == 0);
    for (const uint64_t key : delta.removed()) EXPECT_EQ(held.erase(key), 1u);
    for (const uint64_t key : delta.added()) EXPECT_TRUE(held.insert(key).second);
    const uint64_t digest = std::accumulate(held.begin(), held.end(), uint64_t{0}, std::bit_xor());
    EXPECT_EQ(digest, delta.digest());
    return true;
  };
  ASSERT_TRUE(follow());
  EXPECT_TRUE(held.empty());

  std::vector<int32_t> prompt(40);  // two whole blocks of 16
  std::iota(prompt.begin(), prompt.end(), 5);
  v1::ExecuteRequest request = Request(1);
  request.mutable_prompt_tokens()->Assign(prompt.begin(), prompt.end());
  request.set_cache_salt("tenant");
  ASSERT_TRUE(Execute(worker, request).status.ok());
  std::vector<Hash128> keys;
  ExtendBlockKeys(RootBlockKey({.salt = "tenant"}), prompt, 16, keys);
  while (held.size() < keys.size()) ASSERT_TRUE(follow());
  EXPECT_EQ(held, (std::set<uint64_t>{ShortKey(keys[0]), ShortKey(keys[1])}));
}

TEST(WorkerService, ACallMeantForAnotherProcessAtThisAddressIsRefused) {
  FakeWorker worker;
  v1::ExecuteRequest request = Request(1);
  request.set_instance("the one before");
  const Status refused = Execute(worker, request).status;
  EXPECT_EQ(refused.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(refused), "wrong_instance");
  grpc::ClientContext describe_context, watch_context;
  v1::WorkerDescription description;
  ASSERT_TRUE(worker.stub->Describe(&describe_context, {}, &description).ok());
  request.set_instance(description.instance());
  EXPECT_TRUE(Execute(worker, request).status.ok());
  v1::WatchRequest watch;
  watch.set_instance("the one before");
  EXPECT_EQ(worker.stub->Watch(&watch_context, watch)->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(WorkerService, DrainAnswersWhenTheLastSequenceHasFinished) {
  StepGate gate;
  FakeWorker worker({.before_step = [&](const StepPlan&) { gate.Pass(); }});
  grpc::ClientContext context;
  auto running = worker.stub->Execute(&context, Request(3));
  gate.AwaitStep(1);
  auto drained = std::async(std::launch::async, [&] {
    grpc::ClientContext drain_context;
    v1::DrainResponse response;
    EXPECT_TRUE(worker.stub->Drain(&drain_context, {}, &response).ok());
    return response.finished_sequences();
  });
  ASSERT_TRUE(
      worker.AwaitUpdate([](const auto& update) { return update.state() == v1::WORKER_STATE_DRAINING; }));
  worker.service.Drain([] {});  // again: from its return on, everything is refused
  const Status refused = Execute(worker, Request(1)).status;
  EXPECT_EQ(refused.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(refused), "draining");
  gate.Open();
  EXPECT_EQ(drained.get(), 1u);
  EXPECT_EQ(Finish(context, *running).tokens.size(), 3u);
}

TEST(WorkerService, ADrainHandsOverWhatStillRunsAndAnotherWorkerGoesOn) {
  StepGate gate;
  FakeWorker worker({.before_step = [&](const StepPlan&) { gate.Pass(); }}, {}, /*inbox=*/64,
                    /*drain_seconds=*/0);
  grpc::ClientContext context;
  auto running = worker.stub->Execute(&context, Request(200));
  for (int step = 1; step <= 5; ++step) {
    gate.AwaitStep(step);
    gate.LetOneStep();
  }
  gate.AwaitStep(6);
  std::promise<void> drained;
  worker.service.Drain([&] { drained.set_value(); });
  gate.Open();
  const Answer begun = Finish(context, *running);
  EXPECT_EQ(begun.status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(begun.status), "draining");
  EXPECT_EQ(begun.tokens, ExpectedAnswer(6)) << "of every step that was made";
  drained.get_future().get();
  EXPECT_THAT(worker.metrics.Render(worker.engine.Stats(), RealClock().Now()),
              ::testing::HasSubstr("terrace_engine_sequences_total{outcome=\"handed_over\"} 1\n"));

  FakeWorker peer;
  const Answer rest = Execute(peer, Resumed(Request(200), begun.tokens));
  EXPECT_EQ(rest.status, Status());
  std::vector<int32_t> whole = begun.tokens;
  whole.insert(whole.end(), rest.tokens.begin(), rest.tokens.end());
  EXPECT_EQ(whole, ExpectedAnswer(200));
}

TEST(WorkerService, TextIsSentInChunksToThoseWhoNameItsDigest) {
  FakeWorker worker;
  v1::FetchTextRequest request;
  request.set_digest("d1");
  grpc::ClientContext context;
  auto reader = worker.stub->FetchText(&context, request);
  std::string text;
  for (v1::TextChunk chunk; reader->Read(&chunk); text += chunk.data())
    EXPECT_LE(chunk.data().size(), 1u << 20);
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, std::string(2'500'000, 't'));

  request.set_digest("other");
  grpc::ClientContext other_context;
  auto other = worker.stub->FetchText(&other_context, request);
  v1::TextChunk chunk;
  EXPECT_FALSE(other->Read(&chunk));
  const Status status = FromGrpcStatus(other->Finish(), other_context);
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_EQ(Reason(status), "text_not_found");
}

}  // namespace
}  // namespace terrace
