// The wired router over loopback, with workers that cannot be reached. A running cluster is tests/e2e's.
#include "router/server/router.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/host_port.h"
#include "base/http_server.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/terrace/v1/inference.grpc.pb.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Head(const std::string& method, const std::string& path, const std::string& headers = "") {
  return Concat(method, " ", path, " HTTP/1.1\r\nhost: x\r\nconnection: close\r\n", headers, "\r\n");
}

// What the server says to `bytes` until it hangs up.
std::string Exchange(const std::string& server, const std::string& bytes) {
  const int connection = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(ParseHostPort(server)->port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(connect(connection, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  CHECK(send(connection, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
  std::string out;
  char buffer[4096];
  for (ssize_t n; (n = recv(connection, buffer, sizeof(buffer), 0)) > 0;) out.append(buffer, n);
  close(connection);
  return out;
}

RouterOptions LoopbackOptions() {
  RouterOptions options;
  options.http = options.grpc = options.ops = "127.0.0.1:0";
  options.tiers = {{.name = "nano", .price = {1, 2}}};
  options.workers = {{"127.0.0.1:1"}};
  return options;
}

class RouterTest : public ::testing::Test {
 protected:
  void Start() {
    auto router = Router::Start(LoopbackOptions(), metrics_);
    ASSERT_TRUE(router.ok()) << router.status();
    router_ = *std::move(router);
  }
  StatusOr<std::string> Ops(const std::string& path) { return HttpGet(router_->ops_address() + path, 10); }

  MetricRegistry metrics_;
  std::unique_ptr<Router> router_;
};

TEST_F(RouterTest, WithoutAReadyTierItIsAliveButNotReady) {
  Start();
  EXPECT_TRUE(Ops("/healthz").ok());
  EXPECT_FALSE(Ops("/readyz").ok());
}

TEST_F(RouterTest, ProbesMayAskForTheHeadAlone) {
  Start();
  EXPECT_THAT(Exchange(router_->ops_address(), Head("HEAD", "/healthz")),
              AllOf(StartsWith("HTTP/1.1 200 "), EndsWith("\r\n\r\n")));
  EXPECT_THAT(Exchange(router_->ops_address(), Head("HEAD", "/readyz")),
              AllOf(StartsWith("HTTP/1.1 503 "), EndsWith("\r\n\r\n")));
  EXPECT_THAT(Exchange(router_->ops_address(), Head("POST", "/healthz")),
              AllOf(StartsWith("HTTP/1.1 405 "), HasSubstr("allow: GET, HEAD\r\n")));
}

TEST_F(RouterTest, RequestsThatHttpItselfRefusesHaveAnIdToo) {
  Start();
  EXPECT_THAT(Exchange(router_->http_address(), "nonsense\r\n\r\n"),
              AllOf(StartsWith("HTTP/1.1 400 "), HasSubstr("\r\nx-request-id: ")));
  EXPECT_THAT(
      Exchange(router_->http_address(), Head("POST", "/v1/chat/completions", "content-length: 99999999\r\n")),
      AllOf(StartsWith("HTTP/1.1 413 "), HasSubstr("\r\nx-request-id: ")));
}

TEST_F(RouterTest, TheStatusPageShowsTiersAndReplicas) {
  Start();
  const auto page = Ops("/statusz");
  ASSERT_TRUE(page.ok()) << page.status();
  const Json json = Json::parse(*page);
  EXPECT_EQ(json["tiers"][0]["name"], "nano");
  EXPECT_EQ(json["tiers"][0]["usd_per_million_completion_tokens"], 2);
  EXPECT_EQ(json["models"][0]["id"], "nano");
  EXPECT_EQ(json["in_flight"], 0);
}

TEST_F(RouterTest, MetricsHaveASeriesForEveryTierFromTheStart) {
  Start();
  const auto text = Ops("/metrics");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(*text, HasSubstr("terrace_pool_ready_workers{tier=\"nano\"} 0"));
  EXPECT_THAT(*text, HasSubstr("terrace_tier_attempts_total{result=\"failed\",tier=\"nano\"} 0"));
  EXPECT_THAT(*text, HasSubstr("component=\"router\""));
}

TEST_F(RouterTest, BothApisServeTheModels) {
  Start();
  const auto models = HttpGet(router_->http_address() + "/v1/models", 10);
  ASSERT_TRUE(models.ok()) << models.status();
  EXPECT_EQ(Json::parse(*models)["data"][0]["id"], "nano");
  const auto stub = v1::Inference::NewStub(
      grpc::CreateChannel(router_->grpc_address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  v1::ListModelsResponse response;
  ASSERT_TRUE(stub->ListModels(&context, {}, &response).ok());
  EXPECT_EQ(response.models(0).id(), "nano");
}

TEST_F(RouterTest, APortInUseIsOneErrorThatNamesIt) {
  Start();
  for (const char* which : {"http", "grpc", "ops"}) {
    RouterOptions options = LoopbackOptions();
    if (std::string(which) == "http") options.http = router_->http_address();
    if (std::string(which) == "grpc") options.grpc = router_->grpc_address();
    if (std::string(which) == "ops") options.ops = router_->ops_address();
    MetricRegistry metrics;
    const auto second = Router::Start(options, metrics);
    EXPECT_EQ(second.status().code(), StatusCode::kUnavailable) << which;
    EXPECT_THAT(Message(second.status()), HasSubstr(Concat("listen.", which)));
  }
}

TEST_F(RouterTest, ADrainingRouterRefusesNewRequests) {
  Start();
  router_->BeginDrain();
  const auto stub = v1::Inference::NewStub(
      grpc::CreateChannel(router_->grpc_address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  v1::GenerateRequest request;
  request.set_prompt("x");
  v1::GenerateResponse response;
  const auto reader = stub->Generate(&context, request);
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace terrace
