// A router that answers everything alike, beside what its ops port says of its tier.
#include "tools/cli/paired_evaluation.h"

#include <atomic>
#include <filesystem>

#include "base/exit_code.h"
#include "base/http_server.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/terrace/v1/inference.grpc.pb.h"
#include "tools/cli/answer_journal.h"
#include "tools/cli/test_context.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class FakeRouter : public v1::Inference::Service {
 public:
  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* out) override {
    out->add_models()->set_id("small");
    return grpc::Status::OK;
  }
  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest*,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    if (++asked == rolls_at) version = 2;
    v1::GenerateResponse piece;
    piece.set_text("yes");
    piece.mutable_finished()->set_tier("small");
    writer->Write(piece);
    return grpc::Status::OK;
  }
  Json Statusz() const {
    const Json replica = {
        {"state", "ready"}, {"model_digest", Concat("weights ", version.load())}, {"text_digest", "text"}};
    return {{"tiers", Json::array({{{"name", "small"}, {"replicas", Json::array({replica})}}})}};
  }

  std::atomic<int> asked = 0, version = 1, rolls_at = 0;
};

class ServedRecordsTest : public testing::Test {
 protected:
  ServedRecordsTest() {
    std::filesystem::remove(records_);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&router_);
    server_ = builder.BuildAndStart();
    ops_ = HttpServer::Start({}, [this](HttpRequest, const std::shared_ptr<HttpResponder>& responder) {
             responder->Send(200, ToJsonText(router_.Statusz()));
           }).value();
    for (const char* id : {"a", "b", "c"}) {
      TaskRow& row = rows_.emplace_back();
      row.id = id;
      row.task = "task";
      row.expected = "yes";
      v1::ChatMessage& message = *row.chat.add_messages();
      message.set_role("user");
      message.set_content(id);
    }
    options_.target.router = Concat("127.0.0.1:", port);
    options_.target.model = "small";
    options_.router_ops = ops_->address();
    options_.concurrency = 1;
  }

  Status Evaluate() {
    return EvaluateTarget(options_.target, rows_, options_, records_, test_.context).status();
  }

  const std::string records_ = std::filesystem::path(testing::TempDir()) / "served.jsonl";
  FakeRouter router_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<HttpServer> ops_;
  std::vector<TaskRow> rows_;
  EvaluateOptions options_;
  TestContext test_;
};

TEST_F(ServedRecordsTest, AnswersOfAModelThatWasReplacedAreNotMixedIn) {
  ASSERT_EQ(Evaluate(), Status());
  EXPECT_EQ(router_.asked, 3);
  ASSERT_EQ(Evaluate(), Status());
  EXPECT_EQ(router_.asked, 3) << "all are known";
  EXPECT_EQ(ReadAnswers(records_, rows_, options_.max_tokens)->head.model_digest, "weights 1");
  router_.version = 2;
  const Status rolled = Evaluate();
  EXPECT_EQ(ExitCodeFor(rolled), kExitConfig);
  EXPECT_THAT(Message(rolled), AllOf(HasSubstr(records_), HasSubstr("of another model")));
  EXPECT_EQ(test_.err.str(), "");
}

TEST_F(ServedRecordsTest, AModelThatIsReplacedMeanwhileIsTold) {
  router_.rolls_at = 2;
  const Status rolled = Evaluate();
  EXPECT_EQ(ExitCodeFor(rolled), kExitConfig);
  EXPECT_THAT(Message(rolled), AllOf(HasSubstr("small: has changed while"), HasSubstr(records_)));
}

TEST_F(ServedRecordsTest, WhereNobodyTellsTheWeightsThatIsSaid) {
  options_.target.model = "auto";  // a policy
  ASSERT_EQ(Evaluate(), Status());
  EXPECT_THAT(test_.err.str(), HasSubstr(records_ + ": is tied to the name \"auto\" and to no weights: "));
  options_.target.model = "small";
  EXPECT_THAT(Message(Evaluate()), HasSubstr("were not known then (--router-ops)"));
  std::filesystem::remove(records_);
  ASSERT_EQ(Evaluate(), Status());
  ops_->Stop(0);
  EXPECT_THAT(Message(Evaluate()), HasSubstr("are not now (--router-ops)"));
}

}  // namespace
}  // namespace terrace
