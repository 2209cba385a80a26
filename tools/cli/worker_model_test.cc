// One worker with the smallest demo model, over loopback, beside the same model in this process.
#include "tools/cli/worker_model.h"

#include <atomic>
#include <functional>
#include <future>
#include <thread>

#include "base/json.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/terrace/v1/worker.grpc.pb.h"
#include "text/text_assets.h"
#include "tools/cli/evaluate.h"
#include "tools/cli/local_model.h"
#include "tools/cli/test_context.h"
#include "worker/server/worker_server.h"

namespace terrace {
namespace {

constexpr char kNano[] = "models/terrace-demo-nano", kSmall[] = "models/terrace-demo-small";

OpenEngineOptions EngineOf(const char* model) {
  OpenEngineOptions options;
  options.model = model;
  options.threads = 1;
  options.compute = "f32";
  return options;
}

std::unique_ptr<WorkerServer> StartWorker(const char* model) {
  WorkerServerOptions options;
  options.engine = EngineOf(model);
  auto started = WorkerServer::Start(options);
  CHECK(started.ok(), Message(started.status()));
  return *std::move(started);
}

// Gives one token, and a finish reason that a test chooses.
class EndingWorker : public v1::Worker::Service {
 public:
  grpc::Status Describe(grpc::ServerContext*, const v1::DescribeRequest*,
                        v1::WorkerDescription* out) override {
    out->set_protocol(v1::WORKER_PROTOCOL_CURRENT);
    out->set_text_digest(Digest(text_).Hex());
    out->set_vocab_size(1000);
    out->set_context_length(4096);
    return grpc::Status::OK;
  }
  grpc::Status FetchText(grpc::ServerContext*, const v1::FetchTextRequest*,
                         grpc::ServerWriter<v1::TextChunk>* writer) override {
    v1::TextChunk chunk;
    chunk.set_data(Serialize(text_));
    writer->Write(chunk);
    return grpc::Status::OK;
  }
  grpc::Status Execute(grpc::ServerContext*, const v1::ExecuteRequest*,
                       grpc::ServerWriter<v1::ExecuteEvent>* writer) override {
    v1::ExecuteEvent token, end;
    token.mutable_tokens()->add_tokens()->set_token(300);
    end.mutable_finished()->set_generated_tokens(1);
    end.mutable_finished()->set_reason(reason);
    writer->Write(token);
    writer->Write(end);
    return grpc::Status::OK;
  }

  v1::FinishReason reason = v1::FINISH_REASON_STOP;  // set while nobody asks

 private:
  const TextAssets text_ = LoadTextAssets(kNano).value();
};

class WorkerModelTest : public ::testing::Test {
 protected:
  WorkerModelTest() : server_(StartWorker(kNano)) {
    model_ = WorkerModel::Open(server_->grpc_address()).value();
  }

  static v1::GenerateRequest Story() {
    v1::GenerateRequest request;
    request.set_prompt("Once upon a time");
    request.set_max_tokens(24);
    request.mutable_sampling()->set_temperature(1);
    request.mutable_sampling()->set_seed(11);
    return request;
  }

  ShutdownSignal shutdown_;
  std::unique_ptr<WorkerServer> server_;
  std::unique_ptr<WorkerModel> model_;
};

// All of an answer but times and what was cached.
std::string Told(Answer answer) {
  v1::GenerateResponse told;
  told.set_text(answer.text);
  told.mutable_tokens()->Assign(answer.tokens.begin(), answer.tokens.end());
  told.mutable_prompt_tokens()->Assign(answer.prompt_tokens.begin(), answer.prompt_tokens.end());
  *told.mutable_finished() = answer.finished;
  v1::GenerateFinished& finished = *told.mutable_finished();
  finished.clear_total_seconds();
  finished.clear_time_to_first_token_seconds();
  finished.mutable_usage()->clear_cached_tokens();
  for (v1::TierAttempt& attempt : *finished.mutable_attempts())
    attempt.mutable_usage()->clear_cached_tokens();
  return told.DebugString();
}

TEST_F(WorkerModelTest, AnswersAreThoseOfTheModelInThisProcess) {
  const auto local = LocalModel::Open(EngineOf(kNano)).value();
  const std::function<void(v1::GenerateRequest&)> changes[] = {
      [](v1::GenerateRequest&) {},
      [](v1::GenerateRequest& r) { r.mutable_sampling()->set_temperature(0); },
      [](v1::GenerateRequest& r) { r.set_n(3); },
      [](v1::GenerateRequest& r) { r.set_best_of(4); },
      [](v1::GenerateRequest& r) { r.add_stop("e"); },
      [](v1::GenerateRequest& r) { r.set_top_logprobs(3); },
      [](v1::GenerateRequest& r) { r.set_prompt_logprobs(true); },
      [](v1::GenerateRequest& r) { r.set_echo(true); },
      [](v1::GenerateRequest& r) { r.mutable_sampling()->set_repetition_penalty(1.5); },
      [](v1::GenerateRequest& r) { (*r.mutable_sampling()->mutable_logit_bias())[300] = 20; },
      [](v1::GenerateRequest& r) {
        v1::ChatMessage& message = *r.mutable_chat()->add_messages();
        message.set_role("user");
        message.set_content("Sort the list Kira, Fiona, Rene");
      },
  };
  for (const auto& change : changes) {
    v1::GenerateRequest request = Story();
    change(request);
    SCOPED_TRACE(request.ShortDebugString());
    const auto expected = AskSeveral(*local, request, shutdown_);
    const auto answers = AskSeveral(*model_, request, shutdown_);
    ASSERT_TRUE(expected.ok()) << expected.status();
    ASSERT_TRUE(answers.ok()) << answers.status();
    ASSERT_EQ(answers->size(), expected->size());
    for (size_t i = 0; i < answers->size(); ++i) EXPECT_EQ(Told((*answers)[i]), Told((*expected)[i]));
  }
}

TEST_F(WorkerModelTest, ACancelledRequestFreesItsPlaces) {
  v1::GenerateRequest request = Story();
  request.set_max_tokens(100'000'000);  // more than the context holds
  const auto refused = Ask(*model_, request, shutdown_);
  EXPECT_EQ(refused.status().code(), StatusCode::kInvalidArgument) << refused.status();
  request.set_max_tokens(400);
  request.set_ignore_eos(true);
  request.set_n(2);
  {
    std::atomic<int> pieces = 0;
    std::promise<void> have_begun;
    std::promise<Status> ended;
    const auto call = model_->Start(request, [&](const AnswerPiece& piece) {
      if (!piece.ok()) return ended.set_value(piece.status());
      if (++pieces == 2) have_begun.set_value();
    });
    have_begun.get_future().get();
    call->Cancel();
    EXPECT_EQ(ended.get_future().get().code(), StatusCode::kCancelled);
  }
  while (server_->Stats().running > 0) std::this_thread::yield();  // a test that hangs has failed
}

// gRPC tells the last of an answer whenever it likes.
TEST_F(WorkerModelTest, MayGoBeforeItsAnswers) {
  v1::GenerateRequest request = Story();
  request.set_max_tokens(200);
  request.set_ignore_eos(true);
  request.set_n(4);
  std::promise<void> has_begun;
  std::atomic<bool> is_first = true;
  std::promise<void> is_over;
  std::atomic<int> finished = 0;
  const auto call = model_->Start(request, [&](const AnswerPiece& piece) {
    if (is_first.exchange(false)) has_begun.set_value();
    if (!piece.ok() || (piece->has_finished() && ++finished == 4)) is_over.set_value();
  });
  has_begun.get_future().get();
  model_.reset();
  is_over.get_future().get();
}

TEST_F(WorkerModelTest, AnEmptyPromptIsRefused) {
  v1::GenerateRequest request = Story();
  request.mutable_prompt_tokens();
  request.set_prompt_logprobs(true);
  EXPECT_EQ(Ask(*model_, request, shutdown_).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(WorkerModelTest, ARequestIsForTheProcessThatWasAsked) {
  const std::string address = server_->grpc_address();
  server_.reset();
  WorkerServerOptions options;
  options.engine = EngineOf(kSmall);
  options.grpc = address;
  server_ = WorkerServer::Start(options).value();
  StatusOr<Answer> answer = Ask(*model_, Story(), shutdown_);
  while (Reason(answer.status()).empty() && answer.status().code() == StatusCode::kUnavailable)
    answer = Ask(*model_, Story(), shutdown_);  // the connection is still the old one
  EXPECT_EQ(Reason(answer.status()), "wrong_instance") << answer.status();
}

TEST(WorkerModel, AnAnswerThatDoesNotEndAsOneIsAnError) {
  EndingWorker worker;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&worker);
  const auto server = builder.BuildAndStart();
  const auto model = WorkerModel::Open(Concat("127.0.0.1:", port)).value();
  v1::GenerateRequest request;
  request.set_prompt("Once");
  request.set_max_tokens(1);
  ShutdownSignal shutdown;
  for (int reason = v1::FINISH_REASON_UNSPECIFIED; reason <= v1::FINISH_REASON_TOOL_CALLS; ++reason) {
    worker.reason = static_cast<v1::FinishReason>(reason);
    const auto answer = Ask(*model, request, shutdown);
    if (reason == v1::FINISH_REASON_STOP || reason == v1::FINISH_REASON_LENGTH) {
      EXPECT_TRUE(answer.ok()) << answer.status();
      continue;
    }
    EXPECT_EQ(answer.status().code(), StatusCode::kInternal) << reason;
    EXPECT_EQ(Reason(answer.status()), "worker_protocol") << answer.status();
  }
}

TEST_F(WorkerModelTest, NoWorkerIsAnError) {
  server_.reset();
  const auto answer = Ask(*model_, Story(), shutdown_);
  EXPECT_EQ(answer.status().code(), StatusCode::kUnavailable) << answer.status();
  EXPECT_THAT(Message(WorkerModel::Open("127.0.0.1:1").status()), ::testing::HasSubstr("127.0.0.1:1"));
}

TEST_F(WorkerModelTest, EvaluateComparesTwoWorkers) {
  const auto baseline = StartWorker(kSmall);
  EvaluateOptions options;
  options.target.worker = server_->grpc_address();
  options.baseline = baseline->grpc_address();
  options.tasks = {"models/eval/classify.jsonl"};
  options.limit = 20;
  options.json = true;
  TestContext through_workers;
  ASSERT_EQ(RunEvaluate(options, through_workers.context), Status());
  const Json remote = Json::parse(through_workers.out.str());
  EXPECT_EQ(remote["worker"]["parameters"], 262'592);

  options.target.worker.clear();
  options.target.model = kNano;
  options.target.threads = 1;
  options.target.compute = "f32";
  options.baseline = kSmall;
  options.divergence = false;
  TestContext in_process;
  ASSERT_EQ(RunEvaluate(options, in_process.context), Status());
  const Json local = Json::parse(in_process.out.str());
  const auto scores = [](Json tasks) {
    tasks["classify"].erase("mean_seconds");
    return tasks;
  };
  EXPECT_EQ(scores(remote["tasks"]), scores(local["tasks"]));
  EXPECT_EQ(remote["worker"]["model_digest"], local["in_process"]["model_digest"]);
  EXPECT_EQ(scores(remote["baseline"]["tasks"]), scores(local["baseline"]["tasks"]));
}

}  // namespace
}  // namespace terrace
