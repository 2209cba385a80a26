#include "tools/cli/router_client.h"

#include <cstdlib>
#include <future>
#include <utility>

#include "base/grpc_tls.h"
#include "base/testing_tls.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/terrace/v1/worker.grpc.pb.h"

namespace terrace {
namespace {

// Answers each request with its own prompt, in one piece and the end.
class EchoService : public v1::Inference::Service {
  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    v1::GenerateResponse piece;
    piece.set_text(request->prompt());
    writer->Write(piece);
    if (request->prompt() == "broken") return grpc::Status::OK;  // without its last message
    for (uint32_t choice = 0; choice < ChoicesOf(*request); ++choice) {
      piece.Clear();
      piece.set_choice(choice);
      piece.mutable_finished()->set_tier("echo");
      if (choice > 0 && request->prompt() == "half") break;  // without the others' last messages
      writer->Write(piece);
    }
    return grpc::Status::OK;
  }
};

class RouterClientTest : public ::testing::Test {
 protected:
  RouterClientTest() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  // The text of an answer, or the error that ended it. The client is gone as soon as the last piece is here.
  StatusOr<std::string> AskOnce(const std::string& prompt) {
    std::promise<StatusOr<std::string>> promise;
    std::string text;
    v1::GenerateRequest request;
    request.set_prompt(prompt);
    RouterClient client(address());
    const auto call = client.Start(request, [&](AnswerPiece piece) {
      if (!piece.ok()) return promise.set_value(piece.status());
      text += piece->text();
      if (piece->has_finished()) promise.set_value(text);
    });
    return promise.get_future().get();
  }

  EchoService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

using RouterClientDeathTest = RouterClientTest;

// gRPC used to abort two of five processes that ended so ("assertion failed: prior > 0"). Only a process's
// last channel can show it, hence one process each.
TEST_F(RouterClientDeathTest, AClientMayGoWhileTheLastStreamIsStillEnding) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (int i = 0; i < 20; ++i) {
    const auto ask_and_exit = [this] {
      const bool is_right = *AskOnce("hello") == "hello";
      server_->Shutdown();  // returns when its side of the stream is over
      server_.reset();
      std::exit(is_right ? 0 : 1);
    };
    EXPECT_EXIT(ask_and_exit(), ::testing::ExitedWithCode(0), "");
  }
}

TEST_F(RouterClientTest, AStreamWithoutItsLastMessageIsAnError) {
  EXPECT_EQ(AskOnce("broken").status().code(), StatusCode::kInternal);
}

TEST_F(RouterClientTest, SeveralAnswersAreOverWithTheLastOfThem) {
  ShutdownSignal shutdown;
  RouterClient client(address());
  v1::GenerateRequest request;
  request.set_n(3);
  request.set_prompt("hello");
  const auto answers = AskSeveral(client, request, shutdown);
  ASSERT_TRUE(answers.ok()) << answers.status();
  ASSERT_EQ(answers->size(), 3u);
  EXPECT_EQ(answers->front().text, "hello");
  EXPECT_EQ(answers->back().finished.tier(), "echo");
  request.set_prompt("half");
  EXPECT_EQ(AskSeveral(client, request, shutdown).status().code(), StatusCode::kInternal);
}

TEST_F(RouterClientTest, ARouterWithTlsIsAskedWithItsAuthority) {
  const TestAuthority authority(::testing::TempDir(), "cli");
  TlsFiles server = authority.Issue("cli-server", /*days=*/1, "router.internal");
  server.ca = authority.ca_path();
  const auto source = TlsSource::Open(server, {}).value();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", MakeServerCredentials(source.get()), &port);
  builder.RegisterService(&service_);
  const auto secure_server = builder.BuildAndStart();
  ServerAccess flags{.tls = authority.Issue("cli-client"), .server_name = "router.internal"};
  flags.tls.ca = authority.ca_path();
  ShutdownSignal shutdown;
  v1::GenerateRequest request;
  request.set_prompt("hello");
  RouterClient client(Concat("127.0.0.1:", port), OpenSecurity(flags).value());
  EXPECT_TRUE(AskSeveral(client, request, shutdown).ok());
  EXPECT_EQ(Message(OpenSecurity({.tls = {.ca = "/absent.pem"}}).status()),
            "/absent.pem cannot be read: No such file or directory");
}

TEST_F(RouterClientTest, NobodyAtTheAddressIsSaidInOneLine) {
  server_->Shutdown();
  const Status status = AskOnce("hello").status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_NE(Message(status).find("no router answers at " + address()), std::string::npos) << status;
}

TEST_F(RouterClientTest, AServerThatIsNoRouterIsSaidToBeThat) {
  server_->Shutdown();
  v1::Worker::Service worker;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(&worker);
  server_ = builder.BuildAndStart();
  const Status status = AskOnce("hello").status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Message(status), "what answers at " + address() + " is not a router");
  server_->Shutdown();
}

}  // namespace
}  // namespace terrace
