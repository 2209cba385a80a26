// The drafting side, over an engine without a model whose answers are known: token i of a sequence with the
// seed s is AnswerToken(s, i), whatever came before.
#include "worker/server/draft_service.h"

#include <algorithm>
#include <future>
#include <random>
#include <thread>

#include "base/grpc_status.h"
#include "gmock/gmock.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "proto/terrace/v1/worker.pb.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/fake_executor.h"
#include "worker/server/remote_drafter.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kVocab = 1000, kContext = 2048;
constexpr char kDigest[] = "d1";

std::vector<int32_t> AnswerTokens(uint64_t seed, uint32_t first, uint32_t count) {
  std::vector<int32_t> tokens;
  for (uint32_t i = first; i < first + count; ++i)
    tokens.push_back(FakeExecutor::AnswerToken(seed, i, kVocab));
  return tokens;
}

struct DraftingWorker {
  explicit DraftingWorker(DraftService::Options options = {}, uint32_t max_sequences = 4)
      : engine({.scheduler = {.max_sequences = max_sequences,
                              .max_step_tokens = 64,
                              .context_length = kContext,
                              .vocab_size = kVocab,
                              .block_tokens = 16,
                              .blocks = 4 * kContext / 16},
                .drain_seconds = 600},
               std::make_unique<FakeExecutor>(FakeExecutor::Options{})),
        service(
            [&] {
              options.tokenizer_digest = kDigest;
              return options;
            }(),
            engine, metrics) {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service);
    server = builder.BuildAndStart();
  }
  ~DraftingWorker() {
    service.Stop();
    engine.Stop();
    server->Shutdown(std::chrono::system_clock::now());
  }

  // Until no sequence is left. It looks again and again: nobody tells.
  void AwaitNoSequence() {
    while (engine.Stats().running + engine.Stats().waiting > 0) std::this_thread::yield();
  }
  std::string Metrics() { return metrics.Render({}, {}); }

  WorkerMetrics metrics;
  Engine engine;
  DraftService service;
  std::unique_ptr<grpc::Server> server;
};

v1::ProposeRequest Hello(const std::string& digest = kDigest, uint32_t vocab_size = kVocab,
                         uint32_t protocol = v1::WORKER_PROTOCOL_CURRENT) {
  v1::ProposeRequest request;
  request.mutable_hello()->set_protocol(protocol);
  request.mutable_hello()->set_tokenizer_digest(digest);
  request.mutable_hello()->set_vocab_size(vocab_size);
  return request;
}

// A stream of a caller.
class Caller {
 public:
  explicit Caller(DraftingWorker& worker, const v1::ProposeRequest& hello = Hello())
      : stub_(v1::Drafts::NewStub(worker.server->InProcessChannel({}))), stream_(stub_->Propose(&context_)) {
    stream_->Write(hello);
    v1::ProposeResponse response;
    is_accepted = stream_->Read(&response);
    EXPECT_TRUE(response.drafts().empty());
  }
  ~Caller() {
    context_.TryCancel();
    if (!is_over_) static_cast<void>(Finish());
  }

  void Send(const v1::DraftedSequence& news) {
    v1::ProposeRequest request;
    *request.add_sequences() = news;
    stream_->Write(request);
  }
  void End(uint64_t id) {
    v1::ProposeRequest request;
    request.add_ended(id);
    stream_->Write(request);
  }
  // The next draft that comes; empty where the stream ends.
  v1::Draft Read() {
    while (next_ >= response_.drafts_size()) {
      next_ = 0;
      if (!stream_->Read(&response_)) return {};
    }
    return response_.drafts(next_++);
  }
  // The next `count` tokens, which are all of one sequence and attempt, and go on at `position`.
  std::vector<int32_t> ReadTokens(uint64_t id, uint32_t attempt, uint32_t position, size_t count) {
    std::vector<int32_t> tokens;
    while (tokens.size() < count) {
      const v1::Draft draft = Read();
      if (draft.tokens().empty() || draft.id() != id || draft.attempt() != attempt ||
          draft.position() != position + tokens.size()) {
        ADD_FAILURE() << draft.ShortDebugString();
        return tokens;
      }
      tokens.insert(tokens.end(), draft.tokens().begin(), draft.tokens().end());
    }
    EXPECT_EQ(tokens.size(), count) << "more than was asked for";
    return tokens;
  }
  Status Finish() {
    is_over_ = true;
    v1::ProposeResponse rest;
    while (stream_->Read(&rest)) {
    }
    return FromGrpcStatus(stream_->Finish(), context_);
  }

  bool is_accepted = false;

 private:
  const std::unique_ptr<v1::Drafts::Stub> stub_;
  grpc::ClientContext context_;
  const std::unique_ptr<grpc::ClientReaderWriter<v1::ProposeRequest, v1::ProposeResponse>> stream_;
  v1::ProposeResponse response_;
  int next_ = 0;
  bool is_over_ = false;
};

// News of a sequence whose seed is its id: of a new one, with so many tokens of its prompt.
v1::DraftedSequence New(uint64_t id, uint32_t prompt_tokens, uint32_t ahead) {
  v1::DraftedSequence news;
  news.set_id(id);
  for (uint32_t i = 0; i < prompt_tokens; ++i) news.add_tokens(static_cast<int32_t>((7 * id + i) % kVocab));
  news.set_ahead(ahead);
  news.mutable_start()->set_prompt_tokens(prompt_tokens);
  news.mutable_start()->mutable_sampling()->set_seed(id);
  return news;
}

v1::DraftedSequence More(uint64_t id, uint32_t attempt, uint32_t position, const std::vector<int32_t>& tokens,
                         uint32_t ahead) {
  v1::DraftedSequence news;
  news.set_id(id);
  news.set_attempt(attempt);
  news.set_position(position);
  news.mutable_tokens()->Add(tokens.begin(), tokens.end());
  news.set_ahead(ahead);
  return news;
}

TEST(DraftService, DraftsAsFarAheadAsIsWantedAndGoesOnWithTheAnswer) {
  DraftingWorker worker;
  Caller caller(worker);
  ASSERT_TRUE(caller.is_accepted);
  caller.Send(New(5, 20, /*ahead=*/4));
  EXPECT_EQ(caller.ReadTokens(5, 0, 20, 4), AnswerTokens(5, 0, 4));
  caller.Send(More(5, 0, 20, AnswerTokens(5, 0, 3), /*ahead=*/4));
  EXPECT_EQ(caller.ReadTokens(5, 0, 24, 3), AnswerTokens(5, 4, 3));
  caller.End(5);
  worker.AwaitNoSequence();
  EXPECT_THAT(worker.Metrics(), HasSubstr("terrace_speculation_served_tokens_total 7\n"));
  EXPECT_THAT(worker.Metrics(), HasSubstr("terrace_speculation_served_streams 1\n"));
}

TEST(DraftService, AnotherAttemptBeginsBehindTheLastKnownToken) {
  DraftingWorker worker;
  Caller caller(worker);
  caller.Send(New(5, 40, 4));
  EXPECT_EQ(caller.ReadTokens(5, 0, 40, 4), AnswerTokens(5, 0, 4));
  const int32_t wrong = (AnswerTokens(5, 1, 1)[0] + 1) % static_cast<int32_t>(kVocab);
  caller.Send(More(5, 1, 40, {AnswerTokens(5, 0, 1)[0], wrong}, 4));
  EXPECT_EQ(caller.ReadTokens(5, 1, 42, 4), AnswerTokens(5, 2, 4));
  EXPECT_GT(worker.engine.Stats().prefix_hit_tokens, 32u) << "most is not computed again";
}

TEST(DraftService, WhoDoesNotFitIsRefusedWithBothSides) {
  DraftingWorker worker;
  const std::string protocol = Concat("protocol ", static_cast<int>(v1::WORKER_PROTOCOL_CURRENT));
  const struct {
    v1::ProposeRequest hello;
    std::string reason, mine, yours;
  } cases[] = {{Hello("d2"), "tokenizer_mismatch", "digest d1 and 1000", "d2 and 1000"},
               {Hello("d1", 999), "tokenizer_mismatch", "digest d1 and 1000", "d1 and 999"},
               {Hello("d1", 1000, 1), "protocol_mismatch", protocol, "the caller 1"},
               {{}, "protocol_mismatch", protocol, "the caller 0"}};
  for (const auto& c : cases) {
    Caller caller(worker, c.hello);
    EXPECT_FALSE(caller.is_accepted);
    const Status end = caller.Finish();
    EXPECT_EQ(end.code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(Reason(end), c.reason);
    EXPECT_THAT(Message(end), HasSubstr(c.mine));
    EXPECT_THAT(Message(end), HasSubstr(c.yours));
  }
}

TEST(DraftService, WhoNeverSaysHelloLosesItsPlace) {
  DraftingWorker worker({.max_streams = 1, .hello_seconds = 0.001});
  const auto stub = v1::Drafts::NewStub(worker.server->InProcessChannel({}));
  grpc::ClientContext context;
  const auto silent = stub->Propose(&context);
  const Status end = FromGrpcStatus(silent->Finish(), context);
  EXPECT_EQ(end.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(end), HasSubstr("no hello"));
  while (worker.Metrics().find("terrace_speculation_served_streams 0\n") == std::string::npos)
    std::this_thread::yield();
}

TEST(DraftService, RequestsComeFirst) {
  DraftingWorker worker({}, /*max_sequences=*/1);
  Caller caller(worker);
  caller.Send(New(5, 20, 4));
  caller.ReadTokens(5, 0, 20, 4);  // it has the only place, and keeps it while it pauses
  SequenceSpec spec;
  spec.prompt = {1, 2, 3};
  spec.max_tokens = 100;
  spec.sampling.seed = 9;
  const auto sink = std::make_shared<CollectingSink>();
  ASSERT_EQ(worker.engine.Submit(spec, sink), Status());
  EXPECT_EQ(sink->Wait().ids(), AnswerTokens(9, 0, 100));
  caller.Send(More(5, 0, 20, AnswerTokens(5, 0, 4), 2));
  EXPECT_EQ(caller.ReadTokens(5, 0, 24, 2), AnswerTokens(5, 4, 2)) << "then it goes on where it was";
}

TEST(DraftService, WhatCannotBeDraftedIsGivenUpAndTheOthersGoOn) {
  const auto without = [](v1::DraftedSequence news, uint32_t prompt_tokens) {
    news.mutable_start()->set_prompt_tokens(prompt_tokens);
    return news;
  };
  v1::DraftedSequence unknown = New(8, 10, 4), unseeded = New(8, 10, 4), salted = New(8, 10, 4);
  unknown.set_tokens(3, static_cast<int32_t>(kVocab));
  unseeded.mutable_start()->mutable_sampling()->clear_seed();
  salted.mutable_start()->set_cache_salt(std::string(257, 's'));
  const struct {
    const char* name;
    v1::DraftedSequence news;
  } cases[] = {{"no prompt", without(New(8, 10, 4), 0)},
               {"a prompt that did not come", without(New(8, 10, 4), 11)},
               {"no such token", unknown},
               {"no seed", unseeded},
               {"a salt too long", salted},
               {"longer than the context", New(8, kContext, 4)},
               {"more tokens than may be held", New(8, 2 * kContext, 4)}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    DraftingWorker worker({.max_tokens = 3 * kContext / 2});
    Caller caller(worker);
    caller.Send(New(5, 20, 2));
    caller.ReadTokens(5, 0, 20, 2);
    caller.Send(c.news);
    const v1::Draft last = caller.Read();
    EXPECT_EQ(last.id(), 8u);
    EXPECT_TRUE(last.is_last());
    caller.Send(More(8, 0, 10, {1}, 4));  // it was under way already
    caller.Send(More(5, 0, 20, AnswerTokens(5, 0, 1), 2));
    EXPECT_EQ(caller.ReadTokens(5, 0, 22, 1), AnswerTokens(5, 2, 1));
    caller.Send(More(5, 0, 30, {1}, 2));
    EXPECT_TRUE(caller.Read().is_last()) << "tokens were lost";
    worker.AwaitNoSequence();
  }
}

TEST(DraftService, AFullContextIsTheEndOfItsDrafts) {
  DraftingWorker worker;
  Caller caller(worker);
  caller.Send(New(5, kContext - 3, 10));
  EXPECT_EQ(caller.ReadTokens(5, 0, kContext - 3, 3), AnswerTokens(5, 0, 3));
  EXPECT_TRUE(caller.Read().is_last());
  worker.AwaitNoSequence();
}

TEST(DraftService, ItHoldsNoMoreThanItMay) {
  DraftingWorker worker({.max_streams = 2, .max_sequences = 1, .max_running = 1});
  Caller caller(worker), other(worker);
  Caller refused(worker);
  EXPECT_FALSE(refused.is_accepted);
  const Status end = refused.Finish();
  EXPECT_EQ(end.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(end), "overloaded");

  caller.Send(New(5, 20, 2));
  caller.ReadTokens(5, 0, 20, 2);
  caller.Send(New(6, 20, 2));
  const v1::Draft last = caller.Read();
  EXPECT_EQ(last.id(), 6u);
  EXPECT_TRUE(last.is_last());

  other.Send(New(7, 20, 2));
  other.Send(New(8, 20, 2));
  EXPECT_EQ(other.Read().id(), 8u) << "7 is not given up: it only waits";
  caller.End(5);
  worker.AwaitNoSequence();
  other.Send(More(7, 0, 20, AnswerTokens(7, 0, 1), 2));
  EXPECT_EQ(other.ReadTokens(7, 0, 21, 2), AnswerTokens(7, 1, 2));
}

TEST(DraftService, NothingIsDraftedForACallerThatIsGone) {
  DraftingWorker worker;
  {
    Caller caller(worker);
    caller.Send(New(5, 20, 4));
    caller.ReadTokens(5, 0, 20, 4);
    EXPECT_EQ(worker.engine.Stats().running, 1u);
  }
  worker.AwaitNoSequence();
}

TEST(DraftService, AWorkerThatDrainsIsNotKeptByDrafts) {
  DraftingWorker worker;
  Caller caller(worker);
  caller.Send(New(5, 20, 4));
  caller.ReadTokens(5, 0, 20, 4);
  worker.service.Stop();
  const Status end = caller.Finish();
  EXPECT_EQ(end.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(end), "draining");
  std::promise<void> drained;
  worker.engine.Drain([&] { drained.set_value(); });
  drained.get_future().get();
  Caller late(worker);
  EXPECT_FALSE(late.is_accepted);
  EXPECT_EQ(Reason(late.Finish()), "draining");
}

// Both sides: whatever the answers do, a draft is what the drafting model says of the sequence as it is.
TEST(DraftService, TheDraftsOfARemoteDrafterAreThoseOfTheSequenceAsItIs) {
  const uint32_t seed = 11;
  SCOPED_TRACE(Concat("seed ", seed));
  std::mt19937 random(seed);
  const auto draw = [&](uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random);
  };
  DraftingWorker worker;
  WorkerMetrics metrics;
  RemoteDrafter drafter(
      {.channel = worker.server->InProcessChannel({}), .tokenizer_digest = kDigest, .vocab_size = kVocab},
      metrics);
  struct Answer {
    uint64_t id = 0;
    std::vector<int32_t> tokens = {};
    SamplingParams sampling = {};
    TokenCounts counts = {};
  };
  constexpr uint32_t kPrompt = 30;
  uint64_t ended = 0;
  std::vector<Answer> answers;
  for (int round = 0; round < 300; ++round) {
    while (answers.size() < 3) {
      Answer& answer = answers.emplace_back();
      answer.id = ended + answers.size();
      answer.tokens.assign(kPrompt, static_cast<int32_t>(answer.id % kVocab));
      answer.sampling.seed = answer.id;
    }
    for (Answer& answer : answers) {
      const DraftRequest request{.id = answer.id,
                                 .tokens = answer.tokens,
                                 .prompt_tokens = kPrompt,
                                 .sampling = &answer.sampling,
                                 .counts = &answer.counts,
                                 .most = draw(1, 8)};
      std::vector<int32_t> draft;
      while (draft.empty()) {
        draft = drafter.Propose(std::span(&request, 1))->tokens[0];
        std::this_thread::yield();
      }
      ASSERT_LE(draft.size(), request.most);
      const auto right = AnswerTokens(answer.id, request.generated(), 9);
      ASSERT_TRUE(std::ranges::equal(draft, std::span(right).first(draft.size())));
      // Some of the draft is accepted, and what the answer gets with it is as drafted, or not.
      const size_t accepted = draw(0, static_cast<uint32_t>(draft.size()));
      answer.tokens.insert(answer.tokens.end(), draft.begin(),
                           draft.begin() + static_cast<ptrdiff_t>(accepted));
      const int32_t next = right[accepted];
      answer.tokens.push_back(draw(0, 2) > 0 ? next : (next + 1) % static_cast<int32_t>(kVocab));
    }
    if (draw(0, 9) == 0) {
      drafter.Forget(answers[0].id);
      answers.erase(answers.begin());
      ended += 10;  // ids are not used again
    }
  }
  for (const Answer& answer : answers) drafter.Forget(answer.id);
  worker.AwaitNoSequence();
  const EngineStats stats = worker.engine.Stats();
  EXPECT_EQ(stats.free_blocks + stats.cached_blocks, stats.total_blocks);
  EXPECT_EQ(stats.failed, 0u);
}

}  // namespace
}  // namespace terrace
