// The side that is drafted for, against a worker that drafts what the test says.
#include "worker/server/remote_drafter.h"

#include <condition_variable>
#include <deque>
#include <thread>

#include "base/grpc_status.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "proto/terrace/v1/worker.pb.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// The service of a worker that drafts. It has one stream at a time. Thread-safe.
class FakeDrafts : public v1::Drafts::Service {
 public:
  using Stream = grpc::ServerReaderWriter<v1::ProposeResponse, v1::ProposeRequest>;

  grpc::Status Propose(grpc::ServerContext* context, Stream* stream) override {
    v1::ProposeRequest request;
    if (!stream->Read(&request)) return grpc::Status::OK;
    {
      std::lock_guard lock(mutex_);
      hellos_.push_back(request.hello());
      changed_.notify_all();
      if (!refusal.ok()) {
        SetReasonTrailer(*context, refusal);
        return ToGrpcStatus(refusal);
      }
    }
    stream->Write({});
    {
      std::lock_guard lock(mutex_);
      context_ = context;
      stream_ = stream;
    }
    while (Await([this] { return !is_slow_; }) && stream->Read(&request)) Take(request);
    std::lock_guard lock(mutex_);
    stream_ = nullptr;
    changed_.notify_all();
    return grpc::Status::OK;
  }

  v1::DraftsHello NextHello() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !hellos_.empty(); });
    return TakeFirst(hellos_);
  }
  v1::DraftedSequence NextNews() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !news_.empty(); });
    return TakeFirst(news_);
  }
  bool has_news() {
    std::lock_guard lock(mutex_);
    return !news_.empty();
  }
  uint64_t NextEnded() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !ended_.empty(); });
    return TakeFirst(ended_);
  }

  void Send(uint64_t id, uint32_t attempt, uint32_t position, const std::vector<int32_t>& tokens,
            bool is_last = false) {
    v1::ProposeResponse response;
    v1::Draft& draft = *response.add_drafts();
    draft.set_id(id);
    draft.set_attempt(attempt);
    draft.set_position(position);
    draft.mutable_tokens()->Add(tokens.begin(), tokens.end());
    draft.set_is_last(is_last);
    stream_->Write(response);
  }
  // The stream is lost.
  void Drop() {
    std::unique_lock lock(mutex_);
    context_->TryCancel();
    changed_.wait(lock, [this] { return stream_ == nullptr; });
  }
  // While it is slow, nothing is read.
  void SetSlow(bool is_slow) {
    std::lock_guard lock(mutex_);
    is_slow_ = is_slow;
    changed_.notify_all();
  }

  Status refusal;  // set before there is a stream

 private:
  template <typename T>
  static T TakeFirst(std::deque<T>& queue) {
    T first = std::move(queue.front());
    queue.pop_front();
    return first;
  }
  template <typename Condition>
  bool Await(const Condition& condition) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, condition);
    return true;
  }
  void Take(const v1::ProposeRequest& request) {
    std::lock_guard lock(mutex_);
    news_.insert(news_.end(), request.sequences().begin(), request.sequences().end());
    ended_.insert(ended_.end(), request.ended().begin(), request.ended().end());
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  grpc::ServerContext* context_ = nullptr;
  Stream* stream_ = nullptr;  // one writer: the test
  std::deque<v1::DraftsHello> hellos_;
  std::deque<v1::DraftedSequence> news_;
  std::deque<uint64_t> ended_;
  bool is_slow_ = false;
};

// An answer that is drafted for: its prompt is 100, 101, ...
struct Answer {
  explicit Answer(uint64_t number, uint32_t prompt = 3) : id(number), prompt_tokens(prompt) {
    for (uint32_t i = 0; i < prompt; ++i) tokens.push_back(static_cast<int32_t>(100 + i));
    sampling.seed = number;
  }
  DraftRequest Request(uint32_t most) const {
    return {.id = id,
            .tokens = tokens,
            .prompt_tokens = prompt_tokens,
            .sampling = &sampling,
            .counts = &counts,
            .most = most,
            .cache_salt = "salt"};
  }
  void Add(const std::vector<int32_t>& more) { tokens.insert(tokens.end(), more.begin(), more.end()); }

  uint64_t id;
  uint32_t prompt_tokens;
  std::vector<int32_t> tokens;
  SamplingParams sampling;
  TokenCounts counts;
};

class RemoteDrafterTest : public ::testing::Test {
 protected:
  RemoteDrafterTest() {
    grpc::ServerBuilder builder;
    builder.RegisterService(&worker_);
    server_ = builder.BuildAndStart();
  }
  ~RemoteDrafterTest() override {
    drafter_ = nullptr;
    server_->Shutdown(std::chrono::system_clock::now());
  }

  void Open(std::shared_ptr<grpc::Channel> channel = nullptr) {
    if (channel == nullptr) channel = server_->InProcessChannel({});
    drafter_ =
        std::make_unique<RemoteDrafter>(RemoteDrafter::Options{.channel = std::move(channel),
                                                               .tokenizer_digest = "d1",
                                                               .vocab_size = 1000,
                                                               .first_wait = std::chrono::milliseconds(1),
                                                               .longest_wait = std::chrono::milliseconds(2)},
                                        metrics_);
  }
  // These look again and again: nobody tells.
  void AwaitState(RemoteDrafterState state) {
    while (drafter_->state() != state) std::this_thread::yield();
  }
  std::vector<int32_t> AwaitDraft(const DraftRequest& request) {
    std::vector<int32_t> draft;
    while ((draft = Propose(request)).empty()) std::this_thread::yield();
    return draft;
  }
  // News wait while others are being written.
  v1::DraftedSequence AwaitNews(const DraftRequest& request) {
    while (!worker_.has_news()) {
      Propose(request);
      std::this_thread::yield();
    }
    return worker_.NextNews();
  }
  std::vector<int32_t> Propose(const DraftRequest& request) {
    const StatusOr<Drafts> drafts = drafter_->Propose(std::span(&request, 1));
    EXPECT_TRUE(drafts.ok()) << drafts.status();
    EXPECT_EQ(drafts->tokens.size(), 1u);
    return drafts->tokens.at(0);
  }
  // Connected, and `answer` was asked for.
  void Begin(const Answer& answer, uint32_t most = 3) {
    Open();
    AwaitState(RemoteDrafterState::kConnected);
    AwaitNews(answer.Request(most));
  }
  // What is sent comes in order: when the draft of another answer is there, all that was sent before it is.
  void AwaitAllThatWasSent() {
    Answer other(++last_other_);
    while (AwaitNews(other.Request(1)).id() != other.id) {
    }
    worker_.Send(other.id, 0, 3, {1});
    AwaitDraft(other.Request(1));
  }
  std::string Tokens(const std::string& result) {
    const std::string text = metrics_.Render({}, {});
    const std::string series = Concat("terrace_speculation_remote_tokens_total{result=\"", result, "\"} ");
    const size_t begin = text.find(series) + series.size();
    return text.substr(begin, text.find('\n', begin) - begin);
  }

  WorkerMetrics metrics_;
  FakeDrafts worker_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<RemoteDrafter> drafter_;
  uint64_t last_other_ = 1000;
};

TEST_F(RemoteDrafterTest, TheOtherWorkerHearsWhatItNeedsAndThenWhatIsNew) {
  Open();
  const v1::DraftsHello hello = worker_.NextHello();
  EXPECT_EQ(hello.protocol(), v1::WORKER_PROTOCOL_CURRENT);
  EXPECT_EQ(hello.tokenizer_digest(), "d1");
  EXPECT_EQ(hello.vocab_size(), 1000u);
  AwaitState(RemoteDrafterState::kConnected);
  Answer answer(7);
  answer.sampling.temperature = 0.5f;
  answer.sampling.logit_bias = {{4, 1.5f}};
  answer.Add({10});
  EXPECT_EQ(drafter_->MissingTokens(answer.Request(3)), 0u);
  EXPECT_THAT(Propose(answer.Request(3)), IsEmpty());
  const v1::DraftedSequence first = AwaitNews(answer.Request(3));
  EXPECT_EQ(first.id(), 7u);
  EXPECT_EQ(first.attempt(), 0u);
  EXPECT_EQ(first.position(), 0u);
  EXPECT_THAT(first.tokens(), ElementsAre(100, 101, 102, 10));
  EXPECT_EQ(first.ahead(), 7u) << "this draft, the token behind it, the next draft";
  EXPECT_EQ(first.start().prompt_tokens(), 3u);
  EXPECT_EQ(first.start().cache_salt(), "salt");
  EXPECT_EQ(first.start().sampling().temperature(), 0.5f);
  EXPECT_EQ(first.start().sampling().logit_bias().at(4), 1.5f);
  EXPECT_EQ(first.start().sampling().seed(), 7u);

  worker_.Send(7, 0, 4, {11, 12, 13, 14});
  EXPECT_THAT(AwaitDraft(answer.Request(2)), ElementsAre(11, 12));
  answer.Add({11});
  EXPECT_THAT(Propose(answer.Request(3)), ElementsAre(12, 13, 14));
  const v1::DraftedSequence next = AwaitNews(answer.Request(3));
  EXPECT_EQ(next.attempt(), 0u);
  EXPECT_EQ(next.position(), 4u);
  EXPECT_THAT(next.tokens(), ElementsAre(11));
  EXPECT_FALSE(next.has_start());
}

TEST_F(RemoteDrafterTest, ADraftGoesOnWhereTheOneBeforeItEnded) {
  Answer answer(7);
  Begin(answer, 8);
  worker_.Send(7, 0, 3, {10, 11});
  worker_.Send(7, 0, 5, {12});
  worker_.Send(7, 0, 9, {90});  // no draft has a gap
  AwaitAllThatWasSent();
  EXPECT_THAT(Propose(answer.Request(8)), ElementsAre(10, 11, 12));
  EXPECT_EQ(Tokens("dropped"), "1");
}

TEST_F(RemoteDrafterTest, AnAnswerThatGoesOnOtherwiseIsDraftedAnew) {
  Answer answer(7);
  Begin(answer);
  worker_.Send(7, 0, 3, {10, 11, 12});
  EXPECT_THAT(AwaitDraft(answer.Request(2)), ElementsAre(10, 11));
  answer.Add({10, 50});
  EXPECT_THAT(Propose(answer.Request(2)), IsEmpty());
  const v1::DraftedSequence news = AwaitNews(answer.Request(2));
  EXPECT_EQ(news.attempt(), 1u);
  EXPECT_EQ(news.position(), 3u);
  EXPECT_THAT(news.tokens(), ElementsAre(10, 50));

  worker_.Send(7, 0, 5, {13});  // was under way
  worker_.Send(7, 1, 5, {51, 52});
  EXPECT_THAT(AwaitDraft(answer.Request(2)), ElementsAre(51, 52));
  EXPECT_EQ(Tokens("offered"), "4");
  EXPECT_EQ(Tokens("dropped"), "2") << "12 and 13; what was offered was not dropped";
}

TEST_F(RemoteDrafterTest, WhatComesLateIsUsedFromWhereItFits) {
  Answer answer(7);
  Begin(answer);
  answer.Add({10, 11});  // before a draft comes
  EXPECT_THAT(Propose(answer.Request(3)), IsEmpty());
  EXPECT_EQ(AwaitNews(answer.Request(3)).attempt(), 0u) << "it may still come in time";
  worker_.Send(7, 0, 3, {10, 11, 12});
  EXPECT_THAT(AwaitDraft(answer.Request(3)), ElementsAre(12));
  EXPECT_EQ(Tokens("late"), "2");
  EXPECT_EQ(Tokens("offered"), "1");
}

TEST_F(RemoteDrafterTest, ADrafterThatIsBehindMayCatchUp) {
  Answer answer(7);
  Begin(answer);
  worker_.Send(7, 0, 3, {10});
  EXPECT_THAT(AwaitDraft(answer.Request(3)), ElementsAre(10));
  answer.Add({10, 11, 12});
  EXPECT_THAT(Propose(answer.Request(3)), IsEmpty());
  EXPECT_EQ(AwaitNews(answer.Request(3)).attempt(), 0u);
  worker_.Send(7, 0, 4, {11, 12});
  AwaitAllThatWasSent();
  answer.Add({13});  // one token behind instead of two
  EXPECT_THAT(Propose(answer.Request(3)), IsEmpty());
  EXPECT_EQ(AwaitNews(answer.Request(3)).attempt(), 0u);
  worker_.Send(7, 0, 6, {13, 14});
  EXPECT_THAT(AwaitDraft(answer.Request(3)), ElementsAre(14));
}

TEST_F(RemoteDrafterTest, ADrafterThatIsLeftBehindBeginsAnewAtTheNewestToken) {
  Answer answer(7);
  Begin(answer);
  worker_.Send(7, 0, 3, {10});
  EXPECT_THAT(AwaitDraft(answer.Request(3)), ElementsAre(10));
  answer.Add({10, 11});
  EXPECT_THAT(Propose(answer.Request(3)), IsEmpty());
  EXPECT_EQ(AwaitNews(answer.Request(3)).attempt(), 0u);
  answer.Add({12});
  EXPECT_THAT(Propose(answer.Request(3)), IsEmpty());
  EXPECT_EQ(AwaitNews(answer.Request(3)).attempt(), 1u);
  answer.Add({13, 14});
  EXPECT_THAT(Propose(answer.Request(3)), IsEmpty());
  EXPECT_EQ(AwaitNews(answer.Request(3)).attempt(), 1u) << "nothing has come of it yet";
}

TEST_F(RemoteDrafterTest, ASequenceThatIsGivenUpIsNotAskedForAgain) {
  Answer answer(7), other(8);
  Begin(answer);
  worker_.Send(7, 0, 0, {}, /*is_last=*/true);
  while (drafter_->MissingTokens(answer.Request(3)).has_value()) std::this_thread::yield();
  EXPECT_EQ(drafter_->MissingTokens(other.Request(3)), 0u);
}

TEST_F(RemoteDrafterTest, TheEndOfASequenceIsToldAlsoWhenNobodyAsksForDraftsAnyMore) {
  Answer answer(7);
  Begin(answer);
  drafter_->Forget(8);  // never asked for
  drafter_->Forget(7);
  EXPECT_EQ(worker_.NextEnded(), 7u);
}

TEST_F(RemoteDrafterTest, NobodyWaitsForAWorkerThatDoesNotRead) {
  Answer answer(7);
  Begin(answer);
  worker_.SetSlow(true);
  std::vector<int32_t> told(answer.tokens);
  for (int32_t token = 0; token < 1000; ++token) {
    answer.Add({token});
    EXPECT_THAT(Propose(answer.Request(3)), IsEmpty());
  }
  worker_.SetSlow(false);
  int messages = 0;
  while (told != answer.tokens) {  // it hears all, in few messages
    const v1::DraftedSequence news = AwaitNews(answer.Request(3));
    EXPECT_EQ(news.position(), told.size());
    told.insert(told.end(), news.tokens().begin(), news.tokens().end());
    ++messages;
  }
  EXPECT_LT(messages, 10);
}

TEST_F(RemoteDrafterTest, ALostStreamIsOpenedAgainAndKnowsNothing) {
  Answer answer(7);
  Begin(answer);
  worker_.NextHello();
  worker_.Send(7, 0, 3, {10});
  EXPECT_THAT(AwaitDraft(answer.Request(3)), ElementsAre(10));
  worker_.Drop();
  worker_.NextHello();
  AwaitState(RemoteDrafterState::kConnected);
  answer.Add({10});
  EXPECT_THAT(Propose(answer.Request(3)), IsEmpty());
  const v1::DraftedSequence news = AwaitNews(answer.Request(3));
  EXPECT_EQ(news.position(), 0u);
  EXPECT_TRUE(news.has_start());
  EXPECT_THAT(news.tokens(), ElementsAre(100, 101, 102, 10));
  worker_.Send(7, 0, 4, {11});
  EXPECT_THAT(AwaitDraft(answer.Request(3)), ElementsAre(11));
}

TEST_F(RemoteDrafterTest, WhereTheTwoDoNotFitThereAreNoDraftsAndTheMetricSaysSo) {
  worker_.refusal = WithReason(FailedPrecondition("d2, d1"), "tokenizer_mismatch");
  Open();
  AwaitState(RemoteDrafterState::kRefused);
  Answer answer(7);
  EXPECT_EQ(drafter_->MissingTokens(answer.Request(3)), std::nullopt);
  EXPECT_THAT(Propose(answer.Request(3)), IsEmpty());
  drafter_->Forget(7);
  const std::string text = metrics_.Render({}, {});
  EXPECT_THAT(text, HasSubstr("terrace_speculation_remote_state{state=\"refused\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("terrace_speculation_remote_state{state=\"connected\"} 0\n"));
  worker_.NextHello();
  worker_.NextHello();  // it may be another one by then
}

TEST_F(RemoteDrafterTest, WithNobodyThereThereAreNoDrafts) {
  Open(grpc::CreateChannel("127.0.0.1:1", grpc::InsecureChannelCredentials()));
  Answer answer(7);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(drafter_->MissingTokens(answer.Request(3)), std::nullopt);
    EXPECT_THAT(Propose(answer.Request(3)), IsEmpty());
  }
  EXPECT_EQ(drafter_->state(), RemoteDrafterState::kConnecting);
}

}  // namespace
}  // namespace terrace
