#include "tools/cli/bench_targets.h"

#include <future>
#include <optional>
#include <set>

#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/terrace/v1/inference.grpc.pb.h"
#include "proto/terrace/v1/worker.grpc.pb.h"

namespace terrace {
namespace {

constexpr char kNano[] = "models/terrace-demo-nano";
constexpr uint32_t kVocabulary = 300;  // of the fake model: less than its tokenizer has

// Keeps what it is told, and stops the answer after `stop_after` tokens.
class KeepingObserver : public BenchObserver {
 public:
  explicit KeepingObserver(uint32_t stop_after = 1000) : stop_after_(stop_after) {}
  bool OnTokens(uint32_t count) override { return (tokens += count) < stop_after_; }
  void OnEnd(const BenchEnd& end) override { end_.set_value(end); }
  BenchEnd Await() { return end_.get_future().get(); }

  uint32_t tokens = 0;  // read it after Await

 private:
  const uint32_t stop_after_;
  std::promise<BenchEnd> end_;
};

// What the fakes do with a request of so many output tokens.
enum Behaviour : uint32_t {
  kAnswer = 5,
  kLoseATokenOf = 6,
  kEndWithoutLastMessage = 7,
  kRefuse = 8,
  kNeverEnd = 9
};

grpc::Status Refusal(grpc::ServerContext* context) {
  context->AddTrailingMetadata("terrace-reason", "overloaded");
  return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
}

class FakeWorker : public v1::Worker::Service {
 public:
  grpc::Status Describe(grpc::ServerContext*, const v1::DescribeRequest*,
                        v1::WorkerDescription* out) override {
    out->set_instance(instance);
    out->set_model("fake");
    out->set_text_digest("d1");
    out->set_vocab_size(kVocabulary);
    out->set_context_length(4096);
    out->set_device("cpu");
    out->set_weight_dtype("F16");
    if (drafted.has_value()) *out->mutable_speculation() = *drafted;
    return grpc::Status::OK;
  }
  grpc::Status FetchText(grpc::ServerContext*, const v1::FetchTextRequest* request,
                         grpc::ServerWriter<v1::TextChunk>* writer) override {
    if (request->digest() != "d1") return grpc::Status(grpc::StatusCode::NOT_FOUND, request->digest());
    const std::string text = Serialize(LoadTextAssets(kNano).value());
    for (const std::string& half : {text.substr(0, text.size() / 2), text.substr(text.size() / 2)}) {
      v1::TextChunk chunk;
      chunk.set_data(half);
      writer->Write(chunk);
    }
    return grpc::Status::OK;
  }
  grpc::Status Execute(grpc::ServerContext* context, const v1::ExecuteRequest* request,
                       grpc::ServerWriter<v1::ExecuteEvent>* writer) override {
    last_request = *request;
    if (request->max_tokens() == kRefuse) return Refusal(context);
    v1::ExecuteEvent event;
    for (uint32_t i = 0; i < request->max_tokens() || request->max_tokens() == kNeverEnd; ++i) {
      if (request->max_tokens() == kLoseATokenOf && i == 2) continue;
      event.mutable_tokens()->set_first_index(i);
      if (i == 0) event.mutable_tokens()->add_tokens();
      if (!writer->Write(event)) return grpc::Status::CANCELLED;
    }
    if (request->max_tokens() == kEndWithoutLastMessage) return grpc::Status::OK;
    v1::ExecuteFinished& finished = *event.mutable_finished();
    finished.set_prompt_tokens(request->prompt_tokens_size());
    finished.set_cached_tokens(2);
    finished.set_generated_tokens(request->max_tokens());
    finished.set_queue_seconds(0.25);
    finished.set_speculated_tokens(6);
    finished.set_accepted_speculated_tokens(4);
    writer->Write(event);
    return grpc::Status::OK;
  }

  v1::ExecuteRequest last_request;  // read it after the end
  // Set while nobody asks.
  std::string instance = "i1";
  std::optional<v1::SpeculationTotals> drafted;
};

class FakeRouter : public v1::Inference::Service {
 public:
  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* out) override {
    v1::Model& model = *out->add_models();
    model.set_id("small");
    model.set_context_length(2048);
    return grpc::Status::OK;
  }
  // One token for each byte, after a bos of 1.
  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* out) override {
    if (request->model() != "small") return grpc::Status(grpc::StatusCode::NOT_FOUND, "no such model");
    out->add_ids(1);
    for (const char c : request->prompt()) out->add_ids(c);
    return grpc::Status::OK;
  }
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    last_request = *request;
    if (request->max_tokens() == kRefuse) return Refusal(context);
    v1::GenerateResponse response;
    response.add_tokens();
    for (uint32_t i = 0; i < request->max_tokens() || request->max_tokens() == kNeverEnd; ++i) {
      if (request->max_tokens() == kLoseATokenOf && i == 2) continue;
      if (!writer->Write(response)) return grpc::Status::CANCELLED;
    }
    if (request->max_tokens() == kEndWithoutLastMessage) return grpc::Status::OK;
    response.Clear();
    v1::Usage& usage = *response.mutable_finished()->mutable_usage();
    usage.set_prompt_tokens(request->prompt_tokens().ids_size());
    usage.set_cached_tokens(2);
    usage.set_completion_tokens(request->max_tokens());
    usage.set_speculated_tokens(6);
    usage.set_accepted_speculated_tokens(4);
    writer->Write(response);
    return grpc::Status::OK;
  }

  v1::GenerateRequest last_request;  // read it after the end
};

class BenchTargetsTest : public testing::TestWithParam<const char*> {
 protected:
  BenchTargetsTest() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&worker_);
    builder.RegisterService(&router_);
    server_ = builder.BuildAndStart();
  }
  std::string address() const { return Concat("127.0.0.1:", port_); }
  bool is_worker() const { return GetParam() == std::string("worker"); }
  StatusOr<std::unique_ptr<BenchTarget>> Open() {
    return is_worker() ? OpenWorkerBenchTarget(address()) : OpenRouterBenchTarget(address(), "small");
  }
  static BenchRequest RequestOf(uint32_t output_tokens) {
    BenchRequest request;
    request.id = "r1";
    request.prompt = {40, 41, 42};
    request.output_tokens = output_tokens;
    request.sampling_seed = 7;
    request.priority = -3;
    request.cache_salt = "salt";
    return request;
  }

  FakeWorker worker_;
  FakeRouter router_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

INSTANTIATE_TEST_SUITE_P(All, BenchTargetsTest, testing::Values("worker", "router"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(BenchTargetsTest, AnAnswerIsCountedAndItsEndSaysWhatTheServerDid) {
  const auto target = Open();
  ASSERT_TRUE(target.ok()) << target.status();
  EXPECT_EQ((*target)->description().kind, GetParam());
  const auto observer = std::make_shared<KeepingObserver>();
  (*target)->Start(RequestOf(kAnswer), observer);
  const BenchEnd end = observer->Await();
  EXPECT_EQ(end.status, Status());
  EXPECT_EQ(end.prompt_tokens, 3u);
  EXPECT_EQ(end.cached_tokens, 2u);
  EXPECT_EQ(end.speculated_tokens, 6u);
  EXPECT_EQ(end.accepted_speculated_tokens, 4u);
  EXPECT_FALSE((*target)->Speculation().has_value()) << "it tells nothing";
  EXPECT_EQ(end.queue_seconds, is_worker() ? std::optional(0.25) : std::nullopt);
  const auto check = [](const auto& request) {
    EXPECT_TRUE(request.ignore_eos());
    EXPECT_EQ(request.sampling().temperature(), 0);
    EXPECT_EQ(request.sampling().seed(), 7u);
    EXPECT_EQ(request.priority(), -3);
    EXPECT_EQ(request.cache_salt(), "salt");
  };
  if (is_worker()) {
    EXPECT_EQ(worker_.last_request.instance(), "i1");
    EXPECT_THAT(worker_.last_request.prompt_tokens(), testing::ElementsAre(40, 41, 42));
    check(worker_.last_request);
  } else {
    EXPECT_EQ(router_.last_request.model(), "small");
    EXPECT_THAT(router_.last_request.prompt_tokens().ids(), testing::ElementsAre(40, 41, 42));
    check(router_.last_request);
  }
}

TEST_P(BenchTargetsTest, AWorkerTellsWhatItDraftedAndARouterDoesNot) {
  const auto target = Open();
  ASSERT_TRUE(target.ok()) << target.status();
  v1::SpeculationTotals& totals = worker_.drafted.emplace();
  totals.set_drafter("model");
  for (const uint64_t count : {9, 8, 7, 6, 5, 4, 3}) totals.add_proposed(count);  // of a newer one: one more
  for (const uint64_t count : {6, 5, 4}) totals.add_verified(count);
  totals.add_accepted(3);
  totals.set_branch_proposed(12);
  totals.set_branch_verified(11);
  totals.set_branch_accepted(10);
  totals.set_passes(5);
  totals.set_failures(1);
  totals.set_drafting_seconds(0.5);
  totals.set_saved_seconds(-0.25);
  const std::optional<SpeculationStats> told = (*target)->Speculation();
  ASSERT_EQ(told.has_value(), is_worker());
  if (!is_worker()) return;
  EXPECT_EQ(told->drafter, "model");
  EXPECT_EQ(told->proposed, (SpeculationStats::Tokens{9, 8, 7, 6, 5, 4}));
  EXPECT_EQ(told->verified, (SpeculationStats::Tokens{6, 5, 4, 0, 0, 0}));
  EXPECT_EQ(told->accepted, (SpeculationStats::Tokens{3, 0, 0, 0, 0, 0}));
  EXPECT_EQ(told->branch_proposed, 12u);
  EXPECT_EQ(told->branch_verified, 11u);
  EXPECT_EQ(told->branch_accepted, 10u);
  EXPECT_EQ(told->passes, 5u);
  EXPECT_EQ(told->failures, 1u);
  EXPECT_EQ(told->drafting_seconds, 0.5);
  EXPECT_EQ(told->saved_seconds, -0.25);
  totals.set_drafter("oracle");
  EXPECT_EQ((*target)->Speculation()->drafter, "unknown");
  worker_.instance = "i2";
  EXPECT_FALSE((*target)->Speculation().has_value()) << "another process counts from 0";
  server_->Shutdown();
  EXPECT_FALSE((*target)->Speculation().has_value());
}

TEST_P(BenchTargetsTest, WhatGoesWrongHasItsReason) {
  const auto target = Open();
  ASSERT_TRUE(target.ok()) << target.status();
  const struct {
    uint32_t behaviour;
    StatusCode code;
    const char* reason;
  } cases[] = {{kLoseATokenOf, StatusCode::kInternal, "tokens_lost"},
               {kEndWithoutLastMessage, StatusCode::kInternal, ""},
               {kRefuse, StatusCode::kResourceExhausted, "overloaded"}};
  for (const auto& c : cases) {
    const auto observer = std::make_shared<KeepingObserver>();
    (*target)->Start(RequestOf(c.behaviour), observer);
    const Status status = observer->Await().status;
    EXPECT_EQ(status.code(), c.code) << c.behaviour;
    EXPECT_EQ(Reason(status), c.reason) << c.behaviour;
  }
}

TEST_P(BenchTargetsTest, AnObserverThatHasEnoughAndACancelledCallEndTheAnswer) {
  const auto target = Open();
  ASSERT_TRUE(target.ok()) << target.status();
  const auto first = std::make_shared<KeepingObserver>(/*stop_after=*/1);
  (*target)->Start(RequestOf(kNeverEnd), first);
  EXPECT_EQ(first->Await().status.code(), StatusCode::kCancelled);
  const auto second = std::make_shared<KeepingObserver>(/*stop_after=*/1u << 31);
  (*target)->Start(RequestOf(kNeverEnd), second)->Cancel();
  EXPECT_EQ(second->Await().status.code(), StatusCode::kCancelled);
}

TEST_P(BenchTargetsTest, ADeadlineEndsTheAnswer) {
  const auto target = Open();
  ASSERT_TRUE(target.ok()) << target.status();
  BenchRequest request = RequestOf(kNeverEnd);
  request.deadline = RealClock().Now();
  const auto observer = std::make_shared<KeepingObserver>(/*stop_after=*/1u << 31);
  (*target)->Start(request, observer);
  EXPECT_EQ(observer->Await().status.code(), StatusCode::kDeadlineExceeded);
}

TEST_P(BenchTargetsTest, NobodyThereIsUnavailableInOneLine) {
  server_->Shutdown();
  const Status status = Open().status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), testing::HasSubstr(Concat("no ", GetParam(), " answers at ", address())));
  EXPECT_THAT(Message(status), testing::Not(testing::HasSubstr("\n")));
}

TEST_P(BenchTargetsTest, AnotherKindOfServerIsSaidToBeThat) {
  server_->Shutdown();
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(is_worker() ? static_cast<grpc::Service*>(&router_) : &worker_);
  server_ = builder.BuildAndStart();
  const Status status = Open().status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Message(status), Concat("what answers at ", address(), " is not a ", GetParam()));
}

TEST_F(BenchTargetsTest, AWorkersVocabularyIsItsTextTokensWithinTheModel) {
  const auto target = OpenWorkerBenchTarget(address());
  ASSERT_TRUE(target.ok()) << target.status();
  const TextAssets text = LoadTextAssets(kNano).value();
  const Tokenizer& tokenizer = *text.tokenizer;
  const std::vector<TokenId>& ids = (*target)->vocabulary();
  EXPECT_GT(ids.size(), kVocabulary / 2);
  const std::set<TokenId> allowed(ids.begin(), ids.end());
  for (TokenId id = 0; id < static_cast<TokenId>(tokenizer.vocab_size()); ++id) {
    EXPECT_EQ(allowed.contains(id), id < static_cast<TokenId>(kVocabulary) && !tokenizer.IsControl(id)) << id;
  }
}

TEST_F(BenchTargetsTest, ARoutersVocabularyIsWhatItTokenizesTextTo) {
  const auto target = OpenRouterBenchTarget(address(), "small");
  ASSERT_TRUE(target.ok()) << target.status();
  std::vector<TokenId> printable;
  for (char c = '!'; c <= '~'; ++c) printable.push_back(c);
  EXPECT_EQ((*target)->vocabulary(), printable);  // without the bos
  EXPECT_EQ((*target)->description().context_length, 2048u);
  EXPECT_EQ(OpenRouterBenchTarget(address(), "gone").status().code(), StatusCode::kNotFound);
}

TEST(LocalBenchTarget, AnswersWithExactlyTheTokensAskedFor) {
  OpenEngineOptions options;
  options.model = kNano;
  options.threads = 1;
  const auto target = OpenLocalBenchTarget(options);
  ASSERT_TRUE(target.ok()) << target.status();
  EXPECT_EQ((*target)->description().model, "terrace-demo-nano");
  BenchRequest request;
  request.prompt.assign((*target)->vocabulary().begin(), (*target)->vocabulary().begin() + 30);
  request.output_tokens = 50;
  const auto whole = std::make_shared<KeepingObserver>();
  (*target)->Start(request, whole);
  EXPECT_EQ(whole->Await().status, Status());
  EXPECT_EQ(whole->tokens, 50u);
  const auto cut = std::make_shared<KeepingObserver>(/*stop_after=*/3);
  (*target)->Start(request, cut);
  EXPECT_EQ(cut->Await().status.code(), StatusCode::kCancelled);
  const auto refused = std::make_shared<KeepingObserver>();
  request.output_tokens = 1'000'000;
  (*target)->Start(request, refused);
  EXPECT_EQ(Reason(refused->Await().status), "context_length_exceeded");
  options.model = "/nowhere";
  EXPECT_EQ(OpenLocalBenchTarget(options).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace terrace
