// The wired router over loopback, with workers that cannot be reached. A running cluster is tests/e2e's.
#include "router/server/router.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>

#include "base/crypto.h"
#include "base/grpc_tls.h"
#include "base/host_port.h"
#include "base/http_server.h"
#include "base/json.h"
#include "base/testing_tls.h"
#include "gmock/gmock.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/terrace/v1/inference.grpc.pb.h"
#include "proto/terrace/v1/worker.grpc.pb.h"
#include "router/manifest/testing_manifest.h"
#include "router/server/core.h"
#include "text/text_assets.h"
#include "text/tokenizer.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
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

TEST_F(RouterTest, DrainRefusesWhatIsNewAndIsNotReady) {
  Start();
  EXPECT_THAT(Exchange(router_->ops_address(), Head("GET", "/drain")), StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(Exchange(router_->ops_address(), Head("POST", "/drain", "content-length: 0\r\n")),
              AllOf(StartsWith("HTTP/1.1 200 "), HasSubstr("\"draining\":true")));
  EXPECT_THAT(Exchange(router_->ops_address(), Head("GET", "/readyz")), HasSubstr("\"draining\":true"));
}

TEST_F(RouterTest, RequestsThatHttpItselfRefusesHaveAnIdToo) {
  Start();
  EXPECT_THAT(Exchange(router_->http_address(), "nonsense\r\n\r\n"),
              AllOf(StartsWith("HTTP/1.1 400 "), HasSubstr("\r\nx-request-id: ")));
  EXPECT_THAT(
      Exchange(router_->http_address(), Head("POST", "/v1/chat/completions", "content-length: 99999999\r\n")),
      AllOf(StartsWith("HTTP/1.1 413 "), HasSubstr("\r\nx-request-id: ")));
  EXPECT_THAT(*Ops("/metrics"),
              AllOf(HasSubstr("terrace_http_rejections_total{reason=\"malformed\"} 1"),
                    HasSubstr("terrace_http_rejections_total{reason=\"body_too_large\"} 1")));
}

TEST_F(RouterTest, EveryRefusalOfHttpItselfHasACodeOfItsOwn) {
  Start();
  const std::string long_path = "/" + std::string(9000, 'x');
  const struct {
    std::string request;
    const char* code;
  } cases[] = {{Head("TRACE", "/"), "method_not_allowed"},
               {Head("GET", long_path), "uri_too_long"},
               {Head("POST", "/", "expect: magic\r\n"), "expectation_failed"}};
  for (const auto& c : cases) {
    EXPECT_THAT(Exchange(router_->http_address(), c.request), HasSubstr(Concat("\"code\":\"", c.code, "\"")));
  }
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
  EXPECT_THAT(*text, HasSubstr("terrace_http_connections 0"));
  EXPECT_THAT(*text, HasSubstr("terrace_http_full_total 0"));
  EXPECT_THAT(*text, HasSubstr("terrace_http_resets_total 0"));
  EXPECT_THAT(*text, HasSubstr("terrace_config_hash 0"));
  EXPECT_THAT(*text, HasSubstr("terrace_router_picks_total{result=\"none\",tier=\"nano\"} 0"));
  EXPECT_THAT(*text, HasSubstr("terrace_http_rejections_total{reason=\"slow_header\"} 0"));
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

// How a call of gRPC's reflection that asks nothing ends.
grpc::StatusCode AskReflection(const std::string& address) {
  grpc::GenericStub stub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  grpc::Status status;
  const auto call =
      stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag = nullptr;
  bool is_ok = false;
  call->StartCall(nullptr);
  queue.Next(&tag, &is_ok);
  call->WritesDone(nullptr);
  queue.Next(&tag, &is_ok);
  call->Finish(&status, nullptr);
  queue.Next(&tag, &is_ok);
  queue.Shutdown();
  while (queue.Next(&tag, &is_ok)) continue;
  return status.error_code();
}

TEST_F(RouterTest, ReflectionIsThereWhenItIsWanted) {
  Start();
  EXPECT_EQ(AskReflection(router_->grpc_address()), grpc::StatusCode::OK);
  router_.reset();
  RouterOptions options = LoopbackOptions();
  options.grpc_reflection = false;
  auto router = Router::Start(options, metrics_);
  ASSERT_TRUE(router.ok()) << router.status();
  router_ = *std::move(router);
  EXPECT_EQ(AskReflection(router_->grpc_address()), grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(RouterTest, WithCertificatesBothApisSpeakTlsAlone) {
  const TestAuthority authority(::testing::TempDir(), "router");
  RouterOptions options = LoopbackOptions();
  options.tls = authority.Issue("router-server");
  auto router = Router::Start(options, metrics_);
  ASSERT_TRUE(router.ok()) << router.status();
  router_ = *std::move(router);
  EXPECT_FALSE(HttpGet(router_->http_address() + "/v1/models", 10).ok());
  const auto believed = TlsSource::Open({.ca = authority.ca_path()}, {}).value();
  for (const TlsSource* tls : {believed.get(), static_cast<TlsSource*>(nullptr)}) {
    const auto stub =
        v1::Inference::NewStub(grpc::CreateChannel(router_->grpc_address(), MakeChannelCredentials(tls)));
    grpc::ClientContext context;
    v1::ListModelsResponse response;
    EXPECT_EQ(stub->ListModels(&context, {}, &response).ok(), tls != nullptr);
  }
  EXPECT_THAT(*Ops("/metrics"), HasSubstr("terrace_cert_expiry_timestamp_seconds{use=\"listen\"} "));
}

TEST_F(RouterTest, CertificatesThatCannotBeUsedAreAnErrorAtTheStart) {
  RouterOptions options = LoopbackOptions();
  options.worker_tls = {.ca = "/absent.pem"};
  const Status status = Router::Start(options, metrics_).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(Message(status), StartsWith("cluster.tls: /absent.pem cannot be read"));
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

TEST_F(RouterTest, ARouterThatHasEndedItsRequestsIsDraining) {
  Start();
  EXPECT_EQ(router_->drain_seconds(), 30);
  router_->EndRequests();
  EXPECT_EQ(router_->in_flight(), 0u);
  EXPECT_THAT(Exchange(router_->ops_address(), Head("GET", "/readyz")), HasSubstr("\"draining\":true"));
}

// Files of two tenants, whose keys are "key of a" and "key of b".
void UseKeys(RouterOptions& options) {
  options.keys_file = ::testing::TempDir() + "/keys.yaml";
  options.cluster_secret_file = ::testing::TempDir() + "/secret";
  std::ofstream(options.cluster_secret_file) << std::string(32, 's');
  std::ofstream(options.keys_file) << "tenants: [{name: a, key_sha256: ["
                                   << ToHex(AsBytes(Sha256("key of a")))
                                   << "]}, {name: b, models: [small], key_sha256: ["
                                   << ToHex(AsBytes(Sha256("key of b"))) << "]}]";
}

class ReloadTest : public RouterTest {
 protected:
  ReloadTest() {
    options_.tiers.push_back({.name = "small", .price = {3, 4}});
    options_.workers.push_back({"127.0.0.1:1"});
  }
  void Start() {
    auto router = Router::Start(options_, metrics_);
    ASSERT_TRUE(router.ok()) << router.status();
    router_ = *std::move(router);
  }
  Status Reload(const RouterOptions& options) {
    return router_->Reload(options, [] { return false; });
  }
  std::string Models(const std::string& headers = "") {
    return Exchange(router_->http_address(), Head("GET", "/v1/models", headers));
  }

  RouterOptions options_ = LoopbackOptions();
};

TEST_F(ReloadTest, NewRequestsSeeTheNewModels) {
  Start();
  EXPECT_THAT(Models(), HasSubstr("\"small\""));
  options_.tiers.pop_back();
  options_.workers.pop_back();
  options_.tiers[0].name = "tiny";
  ASSERT_TRUE(Reload(options_).ok());
  EXPECT_THAT(Models(), AllOf(HasSubstr("\"tiny\""), Not(HasSubstr("\"small\""))));
}

TEST_F(ReloadTest, KeysComeAndGoWithTheirFile) {
  Start();
  EXPECT_THAT(Models(), StartsWith("HTTP/1.1 200 "));
  UseKeys(options_);
  ASSERT_TRUE(Reload(options_).ok());
  EXPECT_THAT(Models(), StartsWith("HTTP/1.1 401 "));
  EXPECT_THAT(Models("authorization: Bearer key of a\r\n"), HasSubstr("\"nano\""));
  EXPECT_THAT(Models("authorization: Bearer key of b\r\n"),
              AllOf(HasSubstr("\"small\""), Not(HasSubstr("\"nano\""))));
  EXPECT_THAT(Exchange(router_->http_address(), Head("GET", "/healthz")), StartsWith("HTTP/1.1 200 "));
  std::ofstream(options_.keys_file) << "tenants: [{name: a}]";
  ASSERT_TRUE(Reload(options_).ok());
  EXPECT_THAT(Models("authorization: Bearer key of a\r\n"), StartsWith("HTTP/1.1 401 "));
}

TEST_F(ReloadTest, AStartWithAFileThatCannotBeUsedIsAnError) {
  UseKeys(options_);
  options_.keys_file += ".absent";
  const auto router = Router::Start(options_, metrics_);
  EXPECT_EQ(router.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(Message(router.status()), HasSubstr(".absent"));
  EXPECT_EQ(CheckFiles(options_), router.status());
}

TEST_F(ReloadTest, ATiersManifestsAreAskedForWhatTheyLetIn) {
  const std::string file = ::testing::TempDir() + "/router_manifest.json";
  std::filesystem::remove(file);
  const TestSigner signer(::testing::TempDir(), "router_signer");
  options_.manifests = {std::nullopt, ManifestGateOptions{.files = {file}, .key_files = {signer.file}}};
  EXPECT_EQ(Reason(CheckFiles(options_)), "manifest_unreadable");
  EXPECT_THAT(Message(CheckFiles(options_)), StartsWith("tiers[1].manifests: "));
  Start();  // such a tier is refused, not the configuration
  EXPECT_THAT(*Ops("/metrics"),
              HasSubstr("terrace_pool_refused_workers{reason=\"manifest_unreadable\",tier=\"small\"} 0"));
  Manifest manifest = TestManifest("m", "t");
  WriteTestFile(file, ManifestText(manifest, signer.key));
  EXPECT_EQ(CheckFiles(options_), Status());
  EXPECT_TRUE(router_->HasUnreadableManifest());
  EXPECT_EQ(router_->ReloadManifests(), Status());
  EXPECT_FALSE(router_->HasUnreadableManifest());
  EXPECT_TRUE(Reload(options_).ok());
  manifest.failures = {"it is worse"};
  WriteTestFile(file, ManifestText(manifest, signer.key));
  EXPECT_EQ(Reason(CheckFiles(options_)), "manifest_failed");
  EXPECT_TRUE(Reload(options_).ok());
  options_.manifests[1]->key_files = {file};
  EXPECT_EQ(Reload(options_).code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(Reload(options_)), StartsWith("tiers[1].manifest_keys: " + file));
}

TEST_F(ReloadTest, AnErrorLeavesEverythingAsItWas) {
  UseKeys(options_);
  Start();
  RouterOptions wrong = options_;
  wrong.tiers.pop_back();
  wrong.workers.pop_back();  // tenant b may use what is not there
  EXPECT_THAT(Message(Reload(wrong)), HasSubstr("tenants[1].models[0]"));
  wrong = options_;
  wrong.keys_file += ".absent";
  EXPECT_EQ(Reload(wrong).code(), StatusCode::kNotFound);
  EXPECT_THAT(Models("authorization: Bearer key of b\r\n"), HasSubstr("\"small\""));
}

TEST_F(ReloadTest, WhatNeedsARestartSaysSo) {
  Start();
  const std::pair<const char*, std::function<void(RouterOptions&)>> changes[] = {
      {"listen.http", [](auto& o) { o.http = "127.0.0.1:1"; }},
      {"listen.grpc", [](auto& o) { o.grpc = ""; }},
      {"listen.ops", [](auto& o) { o.ops = ""; }},
      {"listen.grpc_reflection", [](auto& o) { o.grpc_reflection = false; }},
      {"admission.max_body_bytes", [](auto& o) { o.max_body_bytes = 1; }},
      {"log", [](auto& o) { o.log.level = LogLevel::kDebug; }},
  };
  for (const auto& [path, change] : changes) {
    RouterOptions options = options_;
    change(options);
    const Status refused = Reload(options);
    EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition) << path;
    EXPECT_THAT(Message(refused), AllOf(StartsWith(path), HasSubstr("restart")));
  }
}

// A worker that is ready.
class FakeWorker : public v1::Worker::Service {
 public:
  FakeWorker() {
    BpeData data;
    data.tokens = {"a", "<end>"};
    data.added = {{1, "<end>", true}};
    data.special.end = {1};
    auto tokenizer = MakeBpeTokenizer(std::move(data));
    CHECK(tokenizer.ok(), Message(tokenizer.status()));
    const TextAssets text{
        .tokenizer = *std::move(tokenizer), .chat_template = nullptr, .bos_text = "", .eos_text = ""};
    text_ = Serialize(text);
    text_digest_ = Digest(text).Hex();
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    CHECK(server_ != nullptr && port != 0);
    address = Concat("127.0.0.1:", port);
  }
  ~FakeWorker() override {
    server_->Shutdown(std::chrono::system_clock::now());  // cancels the Watch calls
    server_->Wait();
  }

  grpc::Status Describe(grpc::ServerContext*, const v1::DescribeRequest*,
                        v1::WorkerDescription* out) override {
    out->set_protocol(v1::WORKER_PROTOCOL_CURRENT);
    out->set_instance("the only one");
    out->set_model("letters");
    out->set_model_digest("m");
    out->set_text_digest(text_digest_);
    out->set_context_length(32);
    out->set_vocab_size(2);
    return grpc::Status::OK;
  }
  grpc::Status FetchText(grpc::ServerContext*, const v1::FetchTextRequest*,
                         grpc::ServerWriter<v1::TextChunk>* writer) override {
    v1::TextChunk chunk;
    chunk.set_data(text_);
    writer->Write(chunk);
    return grpc::Status::OK;
  }
  grpc::Status Watch(grpc::ServerContext* context, const v1::WatchRequest*,
                     grpc::ServerWriter<v1::WorkerUpdate>* writer) override {
    v1::WorkerUpdate update;
    update.set_epoch(1);
    update.set_state(v1::WORKER_STATE_READY);
    update.mutable_prefixes()->set_is_snapshot(true);
    std::mutex mutex;
    std::condition_variable never;
    for (uint64_t sequence = 0; !context->IsCancelled(); ++sequence) {
      update.set_sequence(sequence);
      if (!writer->Write(update)) break;
      std::unique_lock lock(mutex);
      never.wait_for(lock, std::chrono::milliseconds(20));
    }
    return grpc::Status::OK;
  }

  std::string address;

 private:
  std::string text_, text_digest_;
  std::unique_ptr<grpc::Server> server_;
};

class ReadyReloadTest : public ReloadTest {
 protected:
  // One tier of these workers.
  void StartReady(std::vector<std::string> workers) {
    options_.tiers.pop_back();
    options_.workers = {std::move(workers)};
    options_.watch_timeout_seconds = 60;
    Start();
    const MonoTime limit = RealClock().Now() + std::chrono::seconds(30);
    while (!IsReadyNow() && RealClock().Now() < limit) continue;
    ASSERT_TRUE(IsReadyNow());
  }
  bool IsReadyNow() { return Ops("/readyz").ok(); }

  ~ReadyReloadTest() override { router_ = nullptr; }  // before the worker it talks to

  FakeWorker worker_;
};

TEST_F(ReadyReloadTest, WorkersAreKeptWhenWhatListsThemIsGone) {
  const std::string file = ::testing::TempDir() + "/router_test.workers";
  std::ofstream(file) << worker_.address << "\n";
  StartReady({"file://" + file});
  std::filesystem::remove(file);
  options_.slow_start_seconds = 1;  // another cluster
  ASSERT_EQ(Reload(options_), Status());
  EXPECT_TRUE(IsReadyNow());
}

TEST_F(ReadyReloadTest, ATierIsNotEmptied) {
  StartReady({worker_.address});
  RouterOptions options = options_;
  options.workers = {{"127.0.0.1:1"}};
  const Status refused = router_->Reload(options, /*is_interrupted=*/[] { return true; });
  EXPECT_EQ(refused.code(), StatusCode::kUnavailable);
  EXPECT_THAT(Message(refused), HasSubstr("tier nano"));
  EXPECT_TRUE(IsReadyNow()) << "with the workers from before";
  options.workers = {{"127.0.0.1:1", worker_.address}};
  EXPECT_EQ(Reload(options), Status()) << "one that is ready is enough";
  EXPECT_TRUE(IsReadyNow());
}

TEST(CheckAsReady, ATierThatIsReadyHasToStaySo) {
  const auto tier = [](const char* name, std::vector<ReplicaState> states) {
    TierView out{.name = name};
    for (const ReplicaState state : states) {
      ReplicaView replica{
          .id = static_cast<ReplicaId>(out.replicas.size()), .address = "w:1", .state = state};
      replica.in_flight = std::make_shared<ReplicaInFlight>();
      if (state == ReplicaState::kConnecting) replica.last_error = "refused";
      out.replicas.push_back(std::move(replica));
    }
    out.FindReady();
    return out;
  };
  using enum ReplicaState;
  const struct {
    const char* name;
    std::vector<TierView> before, after;
    const char* error;
  } cases[] = {
      {"the same", {tier("a", {kReady})}, {tier("a", {kReady})}, nullptr},
      {"one of them", {tier("a", {kReady, kReady})}, {tier("a", {kConnecting, kReady})}, nullptr},
      {"none", {tier("a", {kReady})}, {tier("a", {kConnecting})}, "w:1: refused"},
      {"nobody has tried yet", {tier("a", {kReady})}, {tier("a", {kStarting})}, "w:1 is not ready yet"},
      {"none is there", {tier("a", {kReady})}, {tier("a", {})}, "none is found"},
      {"none was ready before", {tier("a", {kSilent})}, {tier("a", {kConnecting})}, nullptr},
      {"the tier is gone", {tier("a", {kReady})}, {tier("b", {kConnecting})}, nullptr},
      {"the other tier is",
       {tier("a", {kReady}), tier("b", {kReady})},
       {tier("b", {}), tier("a", {kReady})},
       "tier b"},
      {"manifests keep all out", {tier("a", {kReady})}, {tier("a", {kRefused})}, nullptr},
      {"and one is down", {tier("a", {kReady})}, {tier("a", {kConnecting, kRefused})}, nullptr},
      {"and one has not been asked",
       {tier("a", {kReady})},
       {tier("a", {kRefused, kStarting})},
       "w:1 is not ready yet"},
  };
  for (const auto& c : cases) {
    const Status status = CheckAsReady({c.before}, {c.after});
    EXPECT_EQ(status.ok(), c.error == nullptr) << c.name << ": " << status;
    if (c.error != nullptr) {
      EXPECT_THAT(Message(status), HasSubstr(c.error)) << c.name;
    }
  }
}

TEST_F(ReloadTest, TheTimeToDrainIsTheNewOne) {
  Start();
  options_.drain_seconds = 5;
  ASSERT_TRUE(Reload(options_).ok());
  EXPECT_EQ(router_->drain_seconds(), 5);
}

TEST_F(ReloadTest, ADrainingRouterGoesOnDraining) {
  Start();
  router_->BeginDrain();
  ASSERT_TRUE(Reload(options_).ok());
  EXPECT_THAT(
      Exchange(router_->http_address(),
               Head("POST", "/v1/completions", "content-type: application/json\r\ncontent-length: 15\r\n") +
                   "{\"prompt\": \"x\"}"),
      HasSubstr("draining"));
}

}  // namespace
}  // namespace terrace
