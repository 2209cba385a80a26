// A whole worker with the smallest demo model, over loopback.
#include "worker/server/worker_server.h"

#include <atomic>
#include <cmath>
#include <fstream>
#include <future>

#include "base/grpc_status.h"
#include "base/grpc_tls.h"
#include "base/json.h"
#include "base/testing_tls.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/security/credentials.h"
#include "gtest/gtest.h"
#include "worker/engine/fake_device.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr char kModel[] = "models/terrace-demo-nano";

std::vector<Json> GoldenRows(const std::string& model, size_t count) {
  std::ifstream file("models/eval/golden.jsonl");
  std::vector<Json> rows;
  for (std::string line; rows.size() < count && std::getline(file, line);) {
    Json row = *ParseJson(line);
    if (row["model"] == model) rows.push_back(std::move(row));
  }
  EXPECT_EQ(rows.size(), count);
  return rows;
}

WorkerServerOptions Options() {
  WorkerServerOptions options;
  options.engine = {.model = kModel, .threads = 2, .max_sequences = 4, .max_step_tokens = 32};
  options.engine.compute = "f32";  // as the golden rows were made
  options.ops = "127.0.0.1:0";
  return options;
}

std::vector<v1::GeneratedToken> GenerateAt(v1::Worker::Stub& stub, const v1::ExecuteRequest& request) {
  grpc::ClientContext context;
  auto reader = stub.Execute(&context, request);
  std::vector<v1::GeneratedToken> tokens;
  for (v1::ExecuteEvent event; reader->Read(&event);) {
    tokens.insert(tokens.end(), event.tokens().tokens().begin(), event.tokens().tokens().end());
  }
  EXPECT_EQ(FromGrpcStatus(reader->Finish(), context), Status());
  return tokens;
}

class WorkerServerTest : public ::testing::Test {
 protected:
  WorkerServerTest() {
    auto started = WorkerServer::Start(Options());
    CHECK(started.ok(), Message(started.status()));
    server = *std::move(started);
    channel = grpc::CreateChannel(server->grpc_address(), grpc::InsecureChannelCredentials());
    stub = v1::Worker::NewStub(channel);
  }

  static v1::WorkerDescription DescribeAt(v1::Worker::Stub& at) {
    grpc::ClientContext context;
    v1::WorkerDescription description;
    EXPECT_TRUE(at.Describe(&context, {}, &description).ok());
    return description;
  }
  v1::WorkerDescription Describe() { return DescribeAt(*stub); }

  std::vector<v1::GeneratedToken> Generate(const v1::ExecuteRequest& request) {
    return GenerateAt(*stub, request);
  }

  // The load once no sequence is left: an answer ends shortly before the engine says so.
  v1::WorkerLoad AwaitIdle() {
    grpc::ClientContext context;
    const auto watch = stub->Watch(&context, {});
    v1::WorkerUpdate update;
    do {
      CHECK(watch->Read(&update));
    } while (update.load().running_sequences() > 0);
    context.TryCancel();
    return update.load();
  }

  // grpc.health.v1.HealthCheckResponse.status: 1 is SERVING, 2 is NOT_SERVING. Its .proto is not at hand.
  int Health() {
    grpc::GenericStub generic(channel);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const grpc::ByteBuffer empty(nullptr, 0);
    auto call = generic.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", empty, &queue);
    grpc::ByteBuffer response;
    grpc::Status status;
    call->StartCall();
    call->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    EXPECT_TRUE(status.ok()) << status.error_message();
    std::vector<grpc::Slice> slices;
    if (!response.Dump(&slices).ok() || slices.size() != 1 || slices[0].size() != 2) return -1;
    return slices[0].begin()[1];  // field 1, varint
  }

  std::unique_ptr<WorkerServer> server;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Worker::Stub> stub;
};

v1::ExecuteRequest RequestFor(const Json& row) {
  v1::ExecuteRequest request;
  for (int32_t token : row["prompt_tokens"]) request.add_prompt_tokens(token);
  request.set_max_tokens(static_cast<uint32_t>(row["greedy_tokens"].size()));
  request.mutable_sampling()->set_temperature(0);
  return request;
}

TEST_F(WorkerServerTest, DescribesItsModel) {
  const v1::WorkerDescription description = Describe();
  EXPECT_EQ(description.protocol(), v1::WORKER_PROTOCOL_CURRENT);
  EXPECT_EQ(description.model(), "terrace-demo-nano");
  EXPECT_EQ(description.family(), "llama");
  EXPECT_EQ(description.parameters(), 262592u);
  EXPECT_EQ(description.vocab_size(), 1024u);
  EXPECT_EQ(description.context_length(), 512u);
  EXPECT_EQ(description.block_tokens(), 16u);
  EXPECT_EQ(description.blocks(), 4 * 512u / 16);
  EXPECT_EQ(description.max_sequences(), 4u);
  EXPECT_EQ(description.weight_dtype(), "F16");
  EXPECT_EQ(description.kv_dtype(), "f32");
  EXPECT_THAT(description.device(), HasSubstr("cpu"));
  EXPECT_EQ(description.drafter(), "");
  EXPECT_TRUE(description.ranks().empty());
  EXPECT_EQ(description.tensor_parallel(), 1u);
  EXPECT_EQ(description.pipeline_parallel(), 1u);
  EXPECT_EQ(description.model_digest().size(), 32u);
  EXPECT_FALSE(description.instance().empty());
}

TEST_F(WorkerServerTest, ItsDescriptionIsAllThatBlockKeysNeed) {
  const v1::WorkerDescription description = Describe();
  v1::ExecuteRequest request;
  for (int32_t token = 40; token < 80; ++token) request.add_prompt_tokens(token);
  request.set_max_tokens(1);
  request.mutable_sampling()->set_temperature(0);
  request.set_cache_salt("tenant");
  grpc::ClientContext context, watch_context;
  v1::ExecuteEvent event;
  auto reader = stub->Execute(&context, request);
  while (reader->Read(&event)) {
  }
  ASSERT_TRUE(reader->Finish().ok());

  std::vector<Hash128> keys;
  const std::vector<int32_t> prompt(request.prompt_tokens().begin(), request.prompt_tokens().end());
  ExtendBlockKeys(
      RootBlockKey(
          {.model = description.model_digest(), .layout = description.kv_layout(), .salt = "tenant"}),
      prompt, description.block_tokens(), keys);
  std::set<uint64_t> wanted;
  for (const Hash128& key : keys) wanted.insert(ShortKey(key));
  EXPECT_EQ(wanted.size(), 2u);
  watch_context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));  // then it fails
  auto watch = stub->Watch(&watch_context, {});
  v1::WorkerUpdate update;
  while (!wanted.empty() && watch->Read(&update)) {
    for (const uint64_t key : update.prefixes().added()) wanted.erase(key);
  }
  EXPECT_TRUE(wanted.empty());
}

TEST_F(WorkerServerTest, ItsTextAssetsAreThoseOfItsDigest) {
  const std::string digest = Describe().text_digest();
  v1::FetchTextRequest request;
  request.set_digest(digest);
  grpc::ClientContext context;
  auto reader = stub->FetchText(&context, request);
  std::string serialized;
  for (v1::TextChunk chunk; reader->Read(&chunk);) serialized += chunk.data();
  EXPECT_TRUE(reader->Finish().ok());
  const auto assets = ParseTextAssets(serialized);
  ASSERT_TRUE(assets.ok()) << assets.status();
  EXPECT_EQ(Digest(*assets).Hex(), digest);
  const Json row = GoldenRows("terrace-demo-nano", 1)[0];
  std::vector<ChatMessage> messages;
  for (const Json& message : row["messages"]) messages.push_back({message["role"], message["content"]});
  EXPECT_EQ(*assets->EncodeChat(messages), row["prompt_tokens"].get<std::vector<TokenId>>());
}

TEST_F(WorkerServerTest, GreedyAnswersAreTheGoldenOnes) {
  for (const Json& row : GoldenRows("terrace-demo-nano", 10)) {
    v1::ExecuteRequest request = RequestFor(row);
    request.set_top_logprobs(5);
    const auto tokens = Generate(request);
    std::vector<int32_t> ids;
    for (const auto& token : tokens) ids.push_back(token.token());
    EXPECT_EQ(ids, row["greedy_tokens"].get<std::vector<int32_t>>());
    const Json& top = row["first_step_top5_logprobs"];
    ASSERT_EQ(tokens.at(0).top_size(), 5);
    for (int i = 0; i < 5; ++i) {
      EXPECT_EQ(tokens[0].top(i).token(), top[i][0].get<int32_t>());
      EXPECT_NEAR(tokens[0].top(i).logprob(), top[i][1].get<double>(),
                  2e-3);  // the reference is f32, summed otherwise
    }
  }
}

TEST_F(WorkerServerTest, AnswersThatShareAStreamAreTheGoldenOnes) {
  const std::vector<Json> rows = GoldenRows("terrace-demo-nano", 10);
  grpc::ClientContext context;
  const auto stream = stub->Serve(&context);
  v1::ServeCommands commands;
  for (size_t i = 0; i < rows.size(); ++i) {
    v1::ServeCommand& command = *commands.add_commands();
    command.set_call(i + 1);
    command.mutable_start()->set_request(RequestFor(rows[i]).SerializeAsString());
    command.mutable_start()->set_credit(1 << 20);
  }
  ASSERT_TRUE(stream->Write(commands));
  stream->WritesDone();
  std::vector<std::vector<int32_t>> ids(rows.size() + 1);  // by call
  for (v1::ServeEvents events; stream->Read(&events);) {
    for (const v1::ServeEvent& event : events.events()) {
      for (const auto& token : event.event().tokens().tokens()) ids.at(event.call()).push_back(token.token());
    }
  }
  EXPECT_EQ(FromGrpcStatus(stream->Finish(), context), Status());
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(ids[i + 1], rows[i]["greedy_tokens"].get<std::vector<int32_t>>());
  }
}

TEST_F(WorkerServerTest, GoldenAnswersGoOnWhereverTheyWereCutOffWhateverIsDrafted) {
  for (const Json& row : GoldenRows("terrace-demo-nano", 4)) {
    const auto golden = row["greedy_tokens"].get<std::vector<int32_t>>();
    for (size_t cut = 0; cut < golden.size(); cut += 1 + golden.size() / 5) {
      for (const size_t right : {size_t{0}, size_t{1}, (golden.size() - cut) / 2, golden.size() - cut}) {
        v1::ExecuteRequest request = RequestFor(row);
        request.mutable_resume_tokens()->Assign(golden.begin(), golden.begin() + static_cast<ptrdiff_t>(cut));
        request.mutable_draft_tokens()->Assign(golden.begin() + static_cast<ptrdiff_t>(cut),
                                               golden.begin() + static_cast<ptrdiff_t>(cut + right));
        if (right % 2 == 0) request.add_draft_tokens(900);
        std::vector<int32_t> ids;
        for (const auto& token : Generate(request)) ids.push_back(token.token());
        EXPECT_EQ(ids, std::vector<int32_t>(golden.begin() + static_cast<ptrdiff_t>(cut), golden.end()))
            << "cut off behind " << cut << ", right up to " << right;
      }
    }
  }
}

// What is drafted in time depends on the machine; that it is, sooner or later, does not.
TEST_F(WorkerServerTest, DraftsOfAnotherWorkerChangeNoTokenAndNeitherDoesItsEnd) {
  WorkerServerOptions options = Options();
  options.engine.model = "models/terrace-demo-small";
  options.engine.speculation = {.drafter = "remote", .adapts = false};
  options.remote_drafter = {.address = server->grpc_address()};
  const auto target = WorkerServer::Start(options);
  ASSERT_TRUE(target.ok()) << target.status();
  const auto target_stub =
      v1::Worker::NewStub(grpc::CreateChannel((*target)->grpc_address(), grpc::InsecureChannelCredentials()));
  const Json row = GoldenRows("terrace-demo-small", 1)[0];
  const auto expect_golden = [&] {
    std::vector<int32_t> ids;
    for (const auto& token : GenerateAt(*target_stub, RequestFor(row))) ids.push_back(token.token());
    EXPECT_EQ(ids, row["greedy_tokens"].get<std::vector<int32_t>>());
  };
  while ((*target)->Stats().speculation.passes == 0) expect_golden();
  EXPECT_EQ(DescribeAt(*target_stub).drafter(), "remote " + server->grpc_address());
  EXPECT_THAT(*HttpGet((*target)->ops_address() + "/metrics", 30),
              HasSubstr("terrace_speculation_remote_state{state=\"connected\"} 1\n"));
  EXPECT_THAT(*HttpGet(server->ops_address() + "/metrics", 30),
              HasSubstr("terrace_speculation_served_streams 1\n"));
  server->Stop();
  expect_golden();
}

TEST(WorkerServer, WithAnAbsentDrafterAWorkerIsReady) {
  WorkerServerOptions options = Options();
  options.engine.speculation = {.drafter = "remote"};
  options.remote_drafter = {.address = "127.0.0.1:1"};
  const auto server = WorkerServer::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_THAT(*HttpGet((*server)->ops_address() + "/readyz", 30), HasSubstr("ready"));
  EXPECT_THAT(*HttpGet((*server)->ops_address() + "/metrics", 30),
              HasSubstr("terrace_speculation_remote_state{state=\"connecting\"} 1\n"));
}

TEST_F(WorkerServerTest, SignalsAreSentWithEachTokenWhenTheyAreAskedFor) {
  v1::ExecuteRequest request = RequestFor(GoldenRows("terrace-demo-nano", 1)[0]);
  request.set_top_logprobs(2);
  for (const auto& token : Generate(request)) EXPECT_EQ(token.margin() + token.entropy(), 0);
  request.set_signals(true);
  for (const auto& token : Generate(request)) {
    EXPECT_NEAR(token.margin(), token.top(0).logprob() - token.top(1).logprob(), 1e-4);
    EXPECT_GT(token.entropy(), 0);
    EXPECT_LT(token.entropy(), std::log(1024.0));
  }
}

TEST_F(WorkerServerTest, TheOpsListenerAnswersForTheEngine) {
  Generate(RequestFor(GoldenRows("terrace-demo-nano", 1)[0]));
  AwaitIdle();
  const std::string ops = server->ops_address();
  EXPECT_THAT(*HttpGet(ops + "/healthz", 30), HasSubstr("alive"));
  EXPECT_THAT(*HttpGet(ops + "/readyz", 30), HasSubstr("ready"));
  const std::string metrics = *HttpGet(ops + "/metrics", 30);
  EXPECT_THAT(metrics, HasSubstr("terrace_engine_sequences_total{outcome=\"stop\"} 1\n"));
  EXPECT_THAT(metrics, HasSubstr("terrace_kv_blocks{state=\"held\"} 0\n"));
  EXPECT_THAT(metrics,
              HasSubstr("terrace_kv_cache_info{block_tokens=\"16\",blocks=\"128\",dtype=\"f32\"} 1\n"));
  EXPECT_THAT(metrics, HasSubstr("terrace_engine_step_seconds_bucket{phase=\"prefill\""));
  EXPECT_FALSE(HttpGet(ops + "/nothing", 30).ok());
}

TEST_F(WorkerServerTest, ARepeatedPromptIsTakenFromThePrefixCacheUnlessItsSaltDiffers) {
  const Json row = GoldenRows("terrace-demo-nano", 1)[0];
  v1::ExecuteRequest request = RequestFor(row);
  const auto cached_tokens = [&] {
    grpc::ClientContext context;
    auto reader = stub->Execute(&context, request);
    std::vector<int32_t> ids;
    uint32_t cached = 0;
    std::optional<uint32_t> cached_at_start;
    for (v1::ExecuteEvent event; reader->Read(&event);) {
      EXPECT_EQ(event.has_started(), !cached_at_start.has_value()) << "once, first";
      if (event.has_started()) cached_at_start = event.started().cached_tokens();
      for (const auto& token : event.tokens().tokens()) ids.push_back(token.token());
      if (event.has_finished()) cached = event.finished().cached_tokens();
    }
    EXPECT_EQ(FromGrpcStatus(reader->Finish(), context), Status());
    EXPECT_EQ(ids, row["greedy_tokens"].get<std::vector<int32_t>>());
    EXPECT_EQ(cached_at_start, cached);
    return cached;
  };
  EXPECT_EQ(cached_tokens(), 0u);
  const uint32_t cached = cached_tokens();
  EXPECT_GT(cached, 0u);
  request.set_cache_salt("another tenant");
  EXPECT_EQ(cached_tokens(), 0u);
  const std::string metrics = *HttpGet(server->ops_address() + "/metrics", 30);
  EXPECT_THAT(metrics, HasSubstr(Concat("terrace_prefix_cache_hit_tokens_total ", cached, "\n")));

  const v1::WorkerLoad load = AwaitIdle();
  EXPECT_GT(load.cached_blocks(), 0u);
  EXPECT_EQ(load.free_blocks() + load.cached_blocks(), load.total_blocks());
}

TEST_F(WorkerServerTest, DrainingTurnsHealthAndReadinessOff) {
  EXPECT_EQ(Health(), 1);
  std::promise<void> drained;
  server->Drain([&] { drained.set_value(); });
  drained.get_future().get();
  EXPECT_EQ(Health(), 2);
  EXPECT_FALSE(HttpGet(server->ops_address() + "/readyz", 30).ok());
  EXPECT_TRUE(HttpGet(server->ops_address() + "/healthz", 30).ok());
  server->Stop();
  server->Stop();
}

TEST_F(WorkerServerTest, ATakenAddressIsAnError) {
  WorkerServerOptions options = Options();
  options.grpc = server->grpc_address();
  EXPECT_EQ(WorkerServer::Start(options).status().code(), StatusCode::kUnavailable);
  options = Options();
  options.ops = server->ops_address();
  EXPECT_EQ(WorkerServer::Start(options).status().code(), StatusCode::kUnavailable);
}

TEST(WorkerServer, WarnsOfADrafterThatIsLargerThanTheModelItDraftsFor) {
  const auto log_of = [](const char* model, const char* drafter) {
    WorkerServerOptions options = Options();
    options.engine.model = Concat("models/terrace-demo-", model);
    options.engine.speculation = {.drafter = "model", .model = Concat("models/terrace-demo-", drafter)};
    testing::internal::CaptureStderr();
    const auto server = WorkerServer::Start(options);
    const std::string log = testing::internal::GetCapturedStderr();
    EXPECT_TRUE(server.ok()) << server.status();
    return log;
  };
  EXPECT_THAT(log_of("nano", "small"), HasSubstr("worker_drafter_is_larger"));
  EXPECT_THAT(log_of("small", "nano"), ::testing::Not(HasSubstr("worker_drafter_is_larger")));
  EXPECT_THAT(log_of("nano", "nano"), ::testing::Not(HasSubstr("worker_drafter_is_larger")));
}

TEST(WorkerServer, SaysWhatItsKvCacheIsMadeOf) {
  WorkerServerOptions options = Options();
  options.engine.kv_dtype = "int8";
  options.engine.host_swap_bytes = 1 << 20;
  const auto server = WorkerServer::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  auto channel = grpc::CreateChannel((*server)->grpc_address(), grpc::InsecureChannelCredentials());
  grpc::ClientContext context;
  v1::WorkerDescription description;
  ASSERT_TRUE(v1::Worker::NewStub(channel)->Describe(&context, {}, &description).ok());
  EXPECT_EQ(description.kv_dtype(), "int8");
  const std::string metrics = *HttpGet((*server)->ops_address() + "/metrics", 30);
  EXPECT_THAT(metrics, HasSubstr("dtype=\"int8\"} 1\n"));
  EXPECT_THAT(metrics, HasSubstr("terrace_kv_host_blocks{state=\"held\"} 0\n"));
  EXPECT_GT((*server)->Stats().host_blocks, 0u);
}

TEST(WorkerServer, WithItsDeviceAWorkerLosesLivenessReadinessAndItsAnswersWhichGoOnElsewhere) {
  std::atomic<bool> is_broken = false;
  FakeDevice device;
  device.lose_device = [&] {
    return is_broken ? WithReason(Internal("x.cc:12: cudaLaunchKernel: bad"), "device_error") : Status();
  };
  WorkerServerOptions options = Options();
  options.engine.compute = "auto";
  options.engine.find_device = FakeDevice::Find;
  auto started = WorkerServer::Start(options);
  ASSERT_TRUE(started.ok()) << started.status();
  WorkerServer& server = **started;
  const auto stub =
      v1::Worker::NewStub(grpc::CreateChannel(server.grpc_address(), grpc::InsecureChannelCredentials()));
  v1::ExecuteRequest request;
  request.add_prompt_tokens(1);
  request.set_max_tokens(1);
  request.set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(0);
  const auto run = [&] {
    grpc::ClientContext context;
    auto reader = stub->Execute(&context, request);
    for (v1::ExecuteEvent event; reader->Read(&event);) {
    }
    return FromGrpcStatus(reader->Finish(), context);
  };
  EXPECT_EQ(run(), Status());
  EXPECT_EQ(server.device_error(), Status());
  is_broken = true;
  const Status lost = run(), late = run();
  EXPECT_EQ(lost.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(lost), "device_lost");
  EXPECT_EQ(Reason(late), "draining");
  EXPECT_EQ(Reason(server.device_error()), "device_error");
  EXPECT_FALSE(HttpGet(server.ops_address() + "/healthz", 30).ok());
  EXPECT_FALSE(HttpGet(server.ops_address() + "/readyz", 30).ok());
  EXPECT_THAT(*HttpGet(server.ops_address() + "/metrics", 30),
              HasSubstr("terrace_engine_sequences_total{outcome=\"handed_over\"} 1\n"));
  std::promise<void> drained;
  server.Drain([&] { drained.set_value(); });
  drained.get_future().get();
  server.Stop();
}

TEST(WorkerServer, ADeviceThatIsLostInTheWarmUpIsAnErrorAtTheStart) {
  FakeDevice device;
  device.lose_device = [] { return WithReason(Internal("x.cc:12: bad"), "device_error"); };
  WorkerServerOptions options = Options();
  options.engine.compute = "auto";
  options.engine.find_device = FakeDevice::Find;
  const Status status = WorkerServer::Start(options).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(status), "device_lost");
  EXPECT_THAT(Message(status), ::testing::EndsWith("is lost: x.cc:12: bad"));
}

TEST(WorkerServer, AWarmUpIsCancelledInTheMiddle) {
  std::atomic<bool> is_cancelled = false, is_told = false;
  std::promise<void> asked;
  FakeDevice device;
  device.lose_device = [&] {  // once: then the step ends when it was asked for
    if (!is_cancelled.exchange(true)) asked.get_future().wait();
    return Status();
  };
  WorkerServerOptions options = Options();
  options.engine.compute = "auto";
  options.engine.find_device = FakeDevice::Find;
  options.engine.is_cancelled = [&] {
    if (is_cancelled && !is_told.exchange(true)) asked.set_value();
    return is_cancelled.load();
  };
  EXPECT_EQ(WorkerServer::Start(options).status().code(), StatusCode::kCancelled);
}

TEST(WorkerServer, WithCertificatesItSpeaksTlsAndAsksForTheClients) {
  const TestAuthority authority(::testing::TempDir(), "worker");
  WorkerServerOptions options = Options();
  options.tls = authority.Issue("worker-server");
  options.tls->ca = authority.ca_path();
  const auto server = WorkerServer::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto describe = [&](const TlsFiles& files) {
    const auto tls = TlsSource::Open(files, {}).value();
    const auto channel = grpc::CreateChannel((*server)->grpc_address(), MakeChannelCredentials(tls.get()));
    grpc::ClientContext context;
    v1::WorkerDescription description;
    return v1::Worker::NewStub(channel)->Describe(&context, {}, &description).ok();
  };
  TlsFiles router = authority.Issue("router-client");
  router.ca = authority.ca_path();
  EXPECT_TRUE(describe(router));
  EXPECT_FALSE(describe({.ca = authority.ca_path()})) << "shows no certificate";
  EXPECT_THAT(*HttpGet((*server)->ops_address() + "/metrics", 30),
              HasSubstr("terrace_cert_expiry_timestamp_seconds{use=\"listen\"} "));
}

TEST(WorkerServer, CertificatesThatCannotBeUsedAreAnErrorAtTheStart) {
  WorkerServerOptions options = Options();
  options.tls = {.certificate = "/absent.pem", .key = "/absent.pem"};
  const Status status = WorkerServer::Start(options).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(Message(status), HasSubstr("tls: /absent.pem cannot be read"));
}

TEST(IsAlive, FollowsTheStepsWhileThereIsWork) {
  const MonoTime now = MonoTime(std::chrono::hours(1));
  EngineStats stats;
  stats.last_step = now - std::chrono::seconds(10);
  stats.is_idle = false;
  EXPECT_TRUE(IsAlive(stats, now, std::chrono::seconds(10)));
  stats.last_step -= std::chrono::nanoseconds(1);
  EXPECT_FALSE(IsAlive(stats, now, std::chrono::seconds(10)));
  stats.usual_step = std::chrono::seconds(25);  // a long prompt on few processors
  stats.last_step = now - std::chrono::seconds(100);
  EXPECT_TRUE(IsAlive(stats, now, std::chrono::seconds(10)));
  stats.last_step -= std::chrono::nanoseconds(1);
  EXPECT_FALSE(IsAlive(stats, now, std::chrono::seconds(10)));
  stats.usual_step = std::chrono::hours(1);
  stats.last_step = now - std::chrono::seconds(300);
  EXPECT_TRUE(IsAlive(stats, now, std::chrono::seconds(10)));
  stats.last_step -= std::chrono::nanoseconds(1);
  EXPECT_FALSE(IsAlive(stats, now, std::chrono::seconds(10))) << "not for ever";
  stats.is_idle = true;
  EXPECT_TRUE(IsAlive(stats, now, std::chrono::seconds(10)));
  stats.is_device_lost = true;
  EXPECT_FALSE(IsAlive(stats, now, std::chrono::seconds(10)));
}

// A step that waits for a slow rank, as long as the group lets it, is no reason to be ended.
TEST(StallLimit, FollowsTheTimeoutOfTheGroup) {
  const struct {
    uint32_t ranks;
    int timeout, limit;
  } cases[] = {{1, 60, 10}, {2, 5, 10}, {2, 8, 13}, {4, 60, 65}};
  for (const auto& each : cases) {
    WorkerServerOptions options;
    options.engine.group.ranks = each.ranks;
    options.group.timeout = std::chrono::seconds(each.timeout);
    EXPECT_EQ(StallLimit(options), std::chrono::seconds(each.limit))
        << each.ranks << " ranks, " << each.timeout;
  }
}

}  // namespace
}  // namespace terrace
