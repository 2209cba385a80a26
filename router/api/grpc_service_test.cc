// The gRPC API over loopback, with a fake dispatcher behind it.
#include "router/api/grpc_service.h"

#include <algorithm>
#include <future>
#include <map>
#include <utility>

#include "base/fake_clock.h"
#include "base/grpc_status.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/terrace/v1/inference.grpc.pb.h"
#include "router/api/fake_dispatcher.h"

namespace terrace {
namespace {

class GrpcServiceTest : public ::testing::Test {
 protected:
  explicit GrpcServiceTest(const ApiOptions& options = {})
      : options_(options),
        service_(MakeInferenceService(
            dispatcher_, [this] { return std::make_shared<ApiOptions>(options_); }, RealClock(), resets_)) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    stub_ = v1::Inference::NewStub(
        grpc::CreateChannel(Concat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
  }
  ~GrpcServiceTest() override { server_->Shutdown(); }

  ApiOptions options_;  // read at every call

  // All responses of one Generate call, and its end.
  Status Generate(const v1::GenerateRequest& request, std::vector<v1::GenerateResponse>& responses) {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, request);
    for (v1::GenerateResponse response; reader->Read(&response);) responses.push_back(response);
    const grpc::Status end = reader->Finish();
    return FromGrpcStatus(end, context);
  }

  FakeDispatcher dispatcher_;
  FakeClock reset_clock_;
  ResetLimit resets_{{.max_resets = 2}, reset_clock_};
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

v1::GenerateRequest Prompt(const std::string& text) {
  v1::GenerateRequest request;
  request.set_model("auto");
  request.set_prompt(text);
  return request;
}

TEST_F(GrpcServiceTest, PiecesComeInOrderAndTheSummaryLast) {
  std::vector<std::string> pieces;
  for (int i = 0; i < 500; ++i) pieces.push_back(Concat("piece ", i, ";"));
  dispatcher_.script = FakeDispatcher::Answers(pieces);
  v1::GenerateRequest request = Prompt("x");
  request.set_request_id("mine");
  request.set_logprobs(true);
  std::vector<v1::GenerateResponse> responses;
  const Status end = Generate(request, responses);
  ASSERT_TRUE(end.ok()) << end;
  ASSERT_EQ(responses.size(), 501u);
  for (size_t i = 0; i < pieces.size(); ++i) EXPECT_EQ(responses[i].text(), pieces[i]);
  EXPECT_EQ(responses[0].request_id(), "mine");
  EXPECT_EQ(responses[0].tokens(0).id(), 7);
  EXPECT_EQ(responses[0].tokens(0).logprob(), -0.5f);
  EXPECT_EQ(responses[0].tokens(0).top_size(), 2);
  const v1::GenerateFinished& finished = responses.back().finished();
  EXPECT_EQ(finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(finished.usage().cached_tokens(), 4u);
  EXPECT_EQ(finished.usage().speculated_tokens(), 3u);
  EXPECT_EQ(finished.usage().accepted_speculated_tokens(), 1u);
  EXPECT_EQ(finished.tier(), "base");
  EXPECT_EQ(finished.tier_reason(), "cascade: accepted at step 2");
  ASSERT_EQ(finished.attempts_size(), 2);
  const v1::TierAttempt &first = finished.attempts(0), &last = finished.attempts(1);
  EXPECT_EQ(first.min_logprob(), -0.5);
  EXPECT_EQ(first.mean_margin(), 1.5);
  EXPECT_EQ(first.mean_entropy(), 0.75);
  EXPECT_EQ(first.score(), -0.3);
  EXPECT_TRUE(first.has_threshold());
  EXPECT_FALSE(last.has_threshold() || last.has_score() || last.has_mean_margin() || last.has_mean_entropy());
}

TEST_F(GrpcServiceTest, TheRequestArrivesAsItWasSent) {
  RequestPtr seen;
  dispatcher_.script = [&](const RequestPtr& request, const auto& sink) {
    seen = request;
    sink->OnFinish(AnswerSummary{});
  };
  v1::GenerateRequest request;
  request.mutable_prompt_tokens()->add_ids(5);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_seed(3);
  (*request.mutable_sampling()->mutable_logit_bias())[4] = 1;
  request.add_stop("END");
  request.add_stop_tokens(9);
  request.set_ignore_eos(true);
  request.set_n(2);
  request.set_best_of(3);
  request.set_echo(true);
  request.set_prompt_logprobs(true);
  request.set_top_logprobs(4);
  request.set_priority(-7);
  request.set_cache_salt("tenant");
  request.set_tier("base");
  request.set_max_usd(0.5);
  request.set_max_seconds(1.5);
  request.set_speculation_max_tokens(0);
  request.set_without_generation_prompt(true);
  std::vector<v1::GenerateResponse> responses;
  ASSERT_TRUE(Generate(request, responses).ok());
  ASSERT_NE(seen, nullptr);
  EXPECT_EQ(std::get<std::vector<TokenId>>(seen->input()), std::vector<TokenId>{5});
  EXPECT_EQ(seen->sampling().temperature, 0);
  EXPECT_EQ(seen->sampling().seed, 3u);
  EXPECT_EQ(seen->sampling().logit_bias.at(4), 1);
  EXPECT_EQ(seen->sampling().top_p, 1) << "absent";
  EXPECT_EQ(seen->stop().front(), "END");
  EXPECT_EQ(seen->max_tokens(), 0u);
  EXPECT_TRUE(seen->ignore_eos());
  EXPECT_FALSE(seen->add_generation_prompt());
  EXPECT_FALSE(seen->is_http());
  EXPECT_THAT(seen->peer(), testing::StartsWith("ipv4:127.0.0.1:"));
  EXPECT_FALSE(seen->request_id().empty()) << "drawn";
  EXPECT_EQ(seen->choices(), 2u);
  EXPECT_EQ(seen->draws(), 3u);
  EXPECT_TRUE(seen->echo());
  EXPECT_EQ(seen->prompt_logprobs(), 4u);
  EXPECT_EQ(seen->top_logprobs(), 0u) << "the answer's are not asked for";
  EXPECT_EQ(seen->priority(), -7);
  EXPECT_EQ(seen->cache_salt(), "tenant");
  EXPECT_EQ(seen->tier(), "base");
  EXPECT_EQ(seen->max_usd(), 0.5);
  EXPECT_EQ(seen->max_seconds(), 1.5);
  EXPECT_EQ(seen->speculation_max_tokens(), 0u) << "none, and not what is absent";
}

TEST_F(GrpcServiceTest, ToolsGoInAndCallsComeOut) {
  RequestPtr seen;
  dispatcher_.script = [&](const RequestPtr& request, const std::shared_ptr<AnswerSink>& sink) {
    seen = request;
    FakeDispatcher::Calls()(request, sink);
  };
  v1::GenerateRequest request;
  v1::ChatMessage& asked = *request.mutable_chat()->add_messages();
  asked.set_role("assistant");
  v1::ToolCall& call = *asked.add_tool_calls();
  call.set_id("call_0");
  call.set_name("now");
  call.set_arguments("{}");
  v1::ChatMessage& result = *request.mutable_chat()->add_messages();
  result.set_role("tool");
  result.set_content("12:00");
  result.set_tool_call_id("call_0");
  v1::Tool& tool = *request.add_tools();
  tool.set_name("add");
  tool.set_description("sum");
  tool.set_parameters(R"({"type": "object"})");
  request.set_single_tool_call(true);
  std::vector<v1::GenerateResponse> responses;
  ASSERT_TRUE(Generate(request, responses).ok());
  ASSERT_NE(seen, nullptr);
  const auto& messages = std::get<std::vector<ChatMessage>>(seen->input());
  EXPECT_EQ(messages[0].tool_calls[0].name, "now");
  EXPECT_EQ(messages[1].tool_call_id, "call_0");
  EXPECT_EQ(seen->tools()[0].parameters, R"({"type": "object"})");
  EXPECT_EQ(seen->max_tool_calls(), 1u);
  ASSERT_EQ(responses.size(), 4u);
  EXPECT_EQ(responses[1].tool_calls(0).id(), "call_1");
  EXPECT_EQ(responses[1].tool_calls(0).arguments(), R"({"b": 1, "a": 2})");
  EXPECT_EQ(responses[2].tool_calls(0).name(), "now");
  EXPECT_EQ(responses[3].finished().reason(), v1::FINISH_REASON_TOOL_CALLS);
}

TEST_F(GrpcServiceTest, EachChoiceHasItsPiecesAndItsOwnEnd) {
  dispatcher_.script = FakeDispatcher::TwoAnswers();
  v1::GenerateRequest request = Prompt("x");
  request.set_n(2);
  request.set_prompt_logprobs(true);
  std::vector<v1::GenerateResponse> responses;
  ASSERT_TRUE(Generate(request, responses).ok());
  ASSERT_FALSE(responses.empty());
  ASSERT_EQ(responses[0].prompt_tokens_size(), 2) << "before every piece";
  EXPECT_EQ(responses[0].prompt_tokens(1).logprob(), -0.5f) << "whether or not the answer's are asked for";
  EXPECT_EQ(responses[0].prompt_tokens(1).top(0).token(), 9);
  std::map<uint32_t, std::string> texts;
  std::map<uint32_t, v1::GenerateFinished> ends;
  for (const v1::GenerateResponse& response : responses) {
    EXPECT_FALSE(ends.contains(response.choice())) << "nothing follows the end of a choice";
    texts[response.choice()] += response.text();
    if (response.has_finished()) ends[response.choice()] = response.finished();
  }
  EXPECT_EQ(texts, (std::map<uint32_t, std::string>{{0, "ab"}, {1, "xy"}}));
  ASSERT_EQ(ends.size(), 2u);
  EXPECT_EQ(ends[0].usage().prompt_tokens(), 10u);
  EXPECT_EQ(ends[1].usage().prompt_tokens(), 0u);
  EXPECT_EQ(ends[1].usage().completion_tokens(), 3u);
  EXPECT_EQ(ends[1].reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(GrpcServiceTest, ALongPromptsTokensComeInSeveralMessages) {
  dispatcher_.script = [](const RequestPtr&, const std::shared_ptr<AnswerSink>& sink) {
    std::vector<AnswerToken> tokens(2500);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i].id = static_cast<TokenId>(i);
    sink->OnPromptTokens(std::move(tokens));
    sink->OnChoiceEnd(0, {});
    sink->OnFinish(AnswerSummary{});
  };
  std::vector<v1::GenerateResponse> responses;
  ASSERT_TRUE(Generate(Prompt("x"), responses).ok());
  std::vector<int32_t> ids;
  for (const v1::GenerateResponse& response : responses) {
    EXPECT_LE(response.prompt_tokens_size(), 1024);
    for (const v1::OutputToken& token : response.prompt_tokens()) ids.push_back(token.id());
  }
  ASSERT_EQ(ids.size(), 2500u);
  for (size_t i = 0; i < ids.size(); ++i) ASSERT_EQ(ids[i], static_cast<int32_t>(i));
}

TEST_F(GrpcServiceTest, ALargePieceComesInAsFewMessagesAsHoldItsTokens) {
  for (const size_t count : {0, 1024, 1025, 2500}) {
    dispatcher_.script = [count](const RequestPtr&, const std::shared_ptr<AnswerSink>& sink) {
      AnswerPiece piece{.text = "all of it", .tokens = std::vector<AnswerToken>(count)};
      for (size_t i = 0; i < count; ++i) piece.tokens[i].id = static_cast<TokenId>(i);
      sink->OnPiece(std::move(piece));
      sink->OnChoiceEnd(0, {});
      sink->OnFinish(AnswerSummary{});
    };
    std::vector<v1::GenerateResponse> responses;
    ASSERT_TRUE(Generate(Prompt("x"), responses).ok());
    ASSERT_EQ(responses.size(), std::max<size_t>(1, (count + 1023) / 1024) + 1);
    EXPECT_EQ(responses[0].text(), "all of it");
    std::vector<int32_t> ids;
    for (const v1::GenerateResponse& response : responses) {
      EXPECT_LE(response.tokens_size(), 1024);
      for (const v1::OutputToken& token : response.tokens()) ids.push_back(token.id());
    }
    ASSERT_EQ(ids.size(), count);
    for (size_t i = 0; i < count; ++i) ASSERT_EQ(ids[i], static_cast<int32_t>(i));
  }
}

TEST_F(GrpcServiceTest, ErrorsCarryTheirReason) {
  v1::GenerateRequest bad = Prompt("x");
  bad.mutable_sampling()->set_top_p(0);
  std::vector<v1::GenerateResponse> responses;
  const Status refused = Generate(bad, responses);
  EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Reason(refused), "invalid_value");
  EXPECT_EQ(dispatcher_.refused.size(), 1u);
  EXPECT_TRUE(dispatcher_.last_refused.trace.has_value()) << "the log has its ids";

  dispatcher_.script = FakeDispatcher::Answers({"half"}, WithReason(Unavailable("lost"), "worker_lost"));
  const Status lost = Generate(Prompt("x"), responses);
  EXPECT_EQ(lost.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(lost), "worker_lost");
  ASSERT_EQ(responses.size(), 1u) << "what was there before the error has arrived";
}

TEST_F(GrpcServiceTest, AClientThatGoesAwayCancelsItsRequest) {
  std::promise<std::shared_ptr<AnswerSink>> started;
  std::promise<void> cancelled;
  dispatcher_.script = [&](const RequestPtr&, const auto& sink) { started.set_value(sink); };
  dispatcher_.on_cancel = [&] { cancelled.set_value(); };
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt("x"));
  const auto sink = started.get_future().get();
  context.TryCancel();
  ASSERT_EQ(cancelled.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
  EXPECT_TRUE(sink->is_closed());
  sink->OnPiece({.text = "nobody reads this"});
  sink->OnFinish(Cancelled("gone"));
  v1::GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

// A little is buffered for clients.
class SmallBufferTest : public GrpcServiceTest {
 protected:
  static constexpr size_t kBufferBytes = 10'000;
  explicit SmallBufferTest(double slow_reader_seconds = 600)
      : GrpcServiceTest({.stream_buffer_bytes = kBufferBytes, .slow_reader_seconds = slow_reader_seconds}) {}

  // Sends pieces until the client is that far behind; how many.
  static int Fill(AnswerSink& sink) {
    int pieces = 0;
    for (; !sink.is_full(); ++pieces) sink.OnPiece({.text = std::string(1000, 'x')});
    return pieces;
  }
  // More than connections hold by themselves.
  static void SendMuch(AnswerSink& sink) {
    for (int i = 0; i < 16; ++i) sink.OnPiece({.text = std::string(size_t{1} << 20, 'x')});
  }
};

TEST_F(SmallBufferTest, AStreamIsFullWhileItsClientDoesNotReadAndSaysWhenThereIsRoom) {
  std::promise<std::shared_ptr<AnswerSink>> started;
  std::promise<void> room;
  dispatcher_.script = [&](const RequestPtr&, const auto& sink) {
    sink->OnRoom([&, is_first = std::make_shared<std::atomic<bool>>(true)] {
      if (is_first->exchange(false)) room.set_value();
    });
    started.set_value(sink);
  };
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt("x"));
  const auto sink = started.get_future().get();
  const int pieces = Fill(*sink) + 1;
  EXPECT_GT(pieces, 9);
  sink->OnPiece({.text = "what is under way still has a place"});
  v1::GenerateResponse response;
  int read = 0;
  for (; sink->is_full(); ++read) ASSERT_TRUE(reader->Read(&response));
  room.get_future().get();
  sink->OnFinish(AnswerSummary{});
  while (reader->Read(&response)) ++read;
  EXPECT_EQ(read, pieces) << "nothing is lost";
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_FALSE(sink->is_too_slow());
}

class ImpatientTest : public SmallBufferTest {
 protected:
  ImpatientTest() : SmallBufferTest(/*slow_reader_seconds=*/0.05) {}
};

TEST_F(ImpatientTest, AClientThatReadsNothingIsCutOff) {
  for (const bool has_end : {false, true}) {
    std::promise<std::shared_ptr<AnswerSink>> started;
    std::promise<void> cancelled;
    dispatcher_.script = [&](const RequestPtr&, const auto& sink) { started.set_value(sink); };
    dispatcher_.on_cancel = [&, is_first = std::make_shared<std::atomic<bool>>(true)] {
      if (is_first->exchange(false)) cancelled.set_value();
    };
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, Prompt("x"));
    const auto sink = started.get_future().get();
    SendMuch(*sink);
    if (has_end) sink->OnFinish(AnswerSummary{});
    cancelled.get_future().get();
    EXPECT_TRUE(sink->is_closed());
    EXPECT_TRUE(sink->is_too_slow());
    if (!has_end) sink->OnFinish(Cancelled("too slow"));
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
    }
    EXPECT_FALSE(reader->Finish().ok()) << "what was dropped does not look like an end";
  }
}

TEST_F(GrpcServiceTest, ScoreGivesTheTokensAndTheirSum) {
  dispatcher_.score =
      ScoreAnswer{.first_token = 3, .tokens = {{.id = 4, .logprob = -1}}, .sum_logprob = -1, .tier = "base"};
  v1::ScoreRequest request;
  request.set_prompt("ab");
  request.set_top_logprobs(2);
  v1::ScoreResponse response;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Score(&context, request, &response).ok());
  }
  EXPECT_EQ(response.first_token(), 3);
  EXPECT_EQ(response.tokens(0).id(), 4);
  EXPECT_EQ(response.sum_logprob(), -1);
  EXPECT_EQ(dispatcher_.last_score->top_logprobs(), 2u);
  dispatcher_.score = WithReason(Unavailable("none"), "no_capacity");
  grpc::ClientContext context;
  const grpc::Status end = stub_->Score(&context, request, &response);
  EXPECT_EQ(Reason(FromGrpcStatus(end, context)), "no_capacity");
}

TEST_F(GrpcServiceTest, ModelsAndTokensAreListed) {
  dispatcher_.models = {{.id = "auto", .is_policy = true, .tiers = {"nano", "base"}, .is_ready = true}};
  dispatcher_.tokens = {1, 2, 3};
  {
    grpc::ClientContext context;
    v1::ListModelsResponse models;
    ASSERT_TRUE(stub_->ListModels(&context, {}, &models).ok());
    EXPECT_EQ(models.models(0).tiers_size(), 2);
    EXPECT_TRUE(models.models(0).ready());
  }
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  request.set_prompt("abc");
  v1::TokenizeResponse response;
  ASSERT_TRUE(stub_->Tokenize(&context, request, &response).ok());
  EXPECT_EQ(response.ids_size(), 3);
  EXPECT_EQ(response.context_length(), 512u);
  EXPECT_EQ(response.token_bytes_size(), 0);
}

TEST_F(GrpcServiceTest, TokensComeWithTheirBytesAndBecomeTextAgain) {
  dispatcher_.tokens = {1};
  dispatcher_.token_bytes = {"\xff"};
  dispatcher_.detokenized = "ab";
  {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_prompt("abc");
    request.set_with_bytes(true);
    v1::TokenizeResponse response;
    ASSERT_TRUE(stub_->Tokenize(&context, request, &response).ok());
    EXPECT_EQ(response.token_bytes(0), "\xff");
  }
  v1::DetokenizeRequest request;
  v1::DetokenizeResponse response;
  {
    grpc::ClientContext context;
    const grpc::Status refused = stub_->Detokenize(&context, request, &response);
    EXPECT_EQ(Reason(FromGrpcStatus(refused, context)), "invalid_value") << "no tokens";
  }
  request.add_tokens(1);
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->Detokenize(&context, request, &response).ok());
  EXPECT_EQ(response.text(), "ab");
}

TEST_F(GrpcServiceTest, TheFieldAtFaultIsInATrailer) {
  grpc::ClientContext context;
  v1::GenerateRequest request = Prompt("x");
  request.mutable_sampling()->set_temperature(9);
  const auto reader = stub_->Generate(&context, request);
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto param = trailers.find("terrace-param");
  ASSERT_NE(param, trailers.end());
  EXPECT_EQ(std::string(param->second.data(), param->second.size()), "temperature");
}

TEST_F(GrpcServiceTest, AConnectionThatResetsTooManyCallsIsRefusedForAWhile) {
  std::shared_ptr<AnswerSink> open;
  std::promise<void>* has_begun = nullptr;
  std::promise<void>* has_cancelled = nullptr;
  dispatcher_.script = [&](const RequestPtr&, const std::shared_ptr<AnswerSink>& sink) {
    open = sink;
    has_begun->set_value();
  };
  dispatcher_.on_cancel = [&] { has_cancelled->set_value(); };
  for (int i = 0; i < 3; ++i) {
    std::promise<void> begun, cancelled;
    has_begun = &begun, has_cancelled = &cancelled;
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, Prompt("x"));
    begun.get_future().get();
    context.TryCancel();
    cancelled.get_future().get();
    open->OnFinish(Cancelled("the client is gone"));
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  dispatcher_.on_cancel = [] {};
  dispatcher_.script = FakeDispatcher::Answers({"hello"});
  std::vector<v1::GenerateResponse> responses;
  const Status refused = Generate(Prompt("x"), responses);
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(refused), "too_many_resets");
  EXPECT_EQ(dispatcher_.refused.size(), 1u) << "in the log";
  reset_clock_.Advance(ResetLimit::kWindow);
  EXPECT_TRUE(Generate(Prompt("x"), responses).ok());
}

class OneKey : public Authenticator {
 public:
  StatusOr<TenantPtr> Authenticate(std::string_view authorization) const override {
    if (authorization == "Bearer secret") return std::make_shared<const Tenant>(Tenant{.name = "acme"});
    return WithReason(Status(StatusCode::kUnauthenticated, "a key is needed"), "invalid_api_key");
  }
};

TEST_F(GrpcServiceTest, WithoutAKeyEveryMethodIsClosed) {
  options_.authenticator = std::make_shared<OneKey>();
  std::vector<v1::GenerateResponse> responses;
  const Status generated = Generate(Prompt("x"), responses);
  EXPECT_EQ(generated.code(), StatusCode::kUnauthenticated);
  EXPECT_EQ(Reason(generated), "invalid_api_key");
  EXPECT_TRUE(responses.empty());
  v1::ScoreResponse score;
  v1::TokenizeRequest text;
  text.set_prompt("x");
  v1::TokenizeResponse tokens;
  v1::ScoreRequest scored;
  scored.set_prompt("x");
  v1::ListModelsResponse models;
  grpc::ClientContext first, second, third;
  EXPECT_EQ(stub_->Score(&first, scored, &score).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(stub_->Tokenize(&second, text, &tokens).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(stub_->ListModels(&third, {}, &models).error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(GrpcServiceTest, AKeyInTheMetadataMakesTheRequestItsTenants) {
  options_.authenticator = std::make_shared<OneKey>();
  std::string tenant, trace;
  dispatcher_.script = [&](const RequestPtr& request, const std::shared_ptr<AnswerSink>& sink) {
    tenant = request->tenant()->name;
    trace = request->trace().TraceIdHex();
    sink->OnFinish(AnswerSummary{});
  };
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer secret");
  context.AddMetadata("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
  const auto reader = stub_->Generate(&context, Prompt("x"));
  for (v1::GenerateResponse response; reader->Read(&response);) continue;
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tenant, "acme");
  EXPECT_EQ(trace, "0af7651916cd43dd8448eb211c80319c");
}

}  // namespace
}  // namespace terrace
