// The HTTP API over loopback, with a fake dispatcher behind it.
#include "router/api/openai_http.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <map>
#include <thread>
#include <utility>
#include <variant>

#include "base/byte_budget.h"
#include "base/host_port.h"
#include "base/json.h"
#include "base/retry_after.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/api/fake_dispatcher.h"
#include "router/api/openai_format.h"
#include "router/request/param.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// A blocking connection to the server.
class Connection {
 public:
  explicit Connection(const std::string& server) : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(ParseHostPort(server)->port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  }
  ~Connection() { close(socket_); }

  void Send(const std::string& bytes) {
    CHECK(send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
  }
  // Everything until the server closes.
  std::string ReadAll() {
    std::string out;
    char buffer[4096];
    for (ssize_t n; (n = recv(socket_, buffer, sizeof(buffer), 0)) > 0;) out.append(buffer, n);
    return out;
  }

 private:
  const int socket_;
};

struct Reply {
  int status = 0;
  std::map<std::string, std::string> headers;  // lower-case names
  std::string body;                            // of chunks, joined
  Json json() const { return Json::parse(body, nullptr, /*allow_exceptions=*/false); }
};

std::string JoinChunks(const std::string& chunked) {
  std::string out;
  for (size_t at = 0; at < chunked.size();) {
    const size_t size = std::stoul(chunked.substr(at), nullptr, 16);
    at = chunked.find("\r\n", at) + 2;
    out += chunked.substr(at, size);
    at += size + 2;
    if (size == 0) break;
  }
  return out;
}

Reply ParseReply(const std::string& bytes) {
  Reply out;
  const size_t head_end = bytes.find("\r\n\r\n");
  if (head_end == std::string::npos) return out;
  out.status = std::stoi(bytes.substr(9, 3));
  for (size_t at = bytes.find("\r\n") + 2; at < head_end;) {
    const size_t end = bytes.find("\r\n", at), colon = bytes.find(": ", at);
    std::string name = bytes.substr(at, colon - at);
    for (char& c : name) c = static_cast<char>(std::tolower(c));
    out.headers[name] = bytes.substr(colon + 2, end - colon - 2);
    at = end + 2;
  }
  out.body = bytes.substr(head_end + 4);
  if (out.headers["transfer-encoding"] == "chunked") out.body = JoinChunks(out.body);
  return out;
}

// The data of each server-sent event.
std::vector<std::string> Events(const std::string& body) {
  std::vector<std::string> out;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    EXPECT_EQ(body.substr(at, 6), "data: ");
    EXPECT_NE(end, std::string::npos);
    if (end == std::string::npos) break;
    out.push_back(body.substr(at + 6, end - at - 6));
    at = end + 2;
  }
  return out;
}

class OpenAiHttpTest : public ::testing::Test {
 protected:
  OpenAiHttpTest() {
    auto server = HttpServer::StartByHead(
        {.max_body_bytes = 32 << 10, .error_body = HttpErrorBody},
        MakeOpenAiHandler(
            dispatcher_, [this] { return std::make_shared<ApiOptions>(options_); }, RealClock()));
    CHECK(server.ok(), Message(server.status()));
    server_ = *std::move(server);
  }
  ~OpenAiHttpTest() override { server_->Stop(1); }

  ApiOptions options_{.default_model = "auto"};  // read at every request

  Reply Call(const std::string& method, const std::string& path, const std::string& body = "",
             const std::string& headers = "content-type: application/json\r\n") {
    Connection connection(server_->address());
    connection.Send(Concat(method, " ", path, " HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: ",
                           body.size(), "\r\n", headers, "\r\n", body));
    return ParseReply(connection.ReadAll());
  }
  Reply Chat(const std::string& more = "",
             const std::string& headers = "content-type: application/json\r\n") {
    return Call("POST", "/v1/chat/completions",
                Concat(R"({"model":"auto","messages":[{"role":"user","content":"hi"}])", more, "}"), headers);
  }

  Reply Complete(const std::string& more = "") {
    return Call("POST", "/v1/completions", Concat(R"({"model":"auto","prompt":"hi")", more, "}"));
  }

  FakeDispatcher dispatcher_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(OpenAiHttpTest, ACompletionIsTextWithUsageAndWhatItCost) {
  const Reply reply = Complete();
  ASSERT_EQ(reply.status, 200) << reply.body;
  const Json json = reply.json();
  EXPECT_EQ(json["object"], "text_completion");
  EXPECT_EQ(json["id"].get<std::string>().substr(0, 5), "cmpl-");
  EXPECT_EQ(json["choices"].size(), 1u);
  EXPECT_EQ(json["choices"][0]["text"], "hello");
  EXPECT_EQ(json["choices"][0]["index"], 0);
  EXPECT_EQ(json["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(json["choices"][0]["logprobs"].is_null());
  EXPECT_EQ(json["usage"]["total_tokens"], 12);
  EXPECT_EQ(json["terrace"]["tier"], "base");
}

// The answer to a prompt is the prompt twice, in two pieces; of two choices the second one's has a "!"
// behind.
FakeDispatcher::Script TwiceThePrompt() {
  return [](const RequestPtr& request, const std::shared_ptr<AnswerSink>& sink) {
    const std::string prompt = std::get<std::string>(request->input());
    if (request->prompt_logprobs().has_value()) sink->OnPromptTokens({{.id = 3, .bytes = prompt}});
    AnswerSummary total{
        .usage = {.prompt_tokens = 10}, .tier = "base", .price_usd = 0.5, .time_to_first_token_seconds = 1};
    for (uint32_t choice = 0; choice < request->choices(); ++choice) {
      const AnswerSummary own{.end = choice == 0 ? AnswerEnd::kStop : AnswerEnd::kLength,
                              .attempts = {{.choice = choice, .tier = "base", .accepted = true}}};
      sink->OnPiece({.choice = choice, .text = prompt});
      sink->OnPiece({.choice = choice, .text = prompt + (choice == 0 ? "" : "!")});
      sink->OnChoiceEnd(choice, own);
      total.usage.completion_tokens += 2;
      total.attempts.push_back(own.attempts.front());
    }
    sink->OnFinish(total);
  };
}

TEST_F(OpenAiHttpTest, TheChoicesOfSeveralPromptsAreNumberedThroughAndTheirCostsSummed) {
  dispatcher_.script = TwiceThePrompt();
  const Json json = Call("POST", "/v1/completions", R"({"prompt":["a","b","c"],"n":2})").json();
  ASSERT_EQ(json["choices"].size(), 6u) << json;
  const char* texts[] = {"aa", "aa!", "bb", "bb!", "cc", "cc!"};
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(json["choices"][i]["index"], i);
    EXPECT_EQ(json["choices"][i]["text"], texts[i]);
    EXPECT_EQ(json["choices"][i]["finish_reason"], i % 2 == 0 ? "stop" : "length");
    EXPECT_EQ(json["terrace"]["attempts"][i]["choice"], i);
  }
  EXPECT_EQ(json["usage"]["prompt_tokens"], 30);
  EXPECT_EQ(json["usage"]["completion_tokens"], 12);
  EXPECT_EQ(json["terrace"]["price_usd"], 1.5);
}

TEST_F(OpenAiHttpTest, EachOfSeveralPromptsIsEchoedInItsOwnChoice) {
  dispatcher_.script = TwiceThePrompt();
  const Json json =
      Call("POST", "/v1/completions", R"({"prompt":["a","b"],"echo":true,"logprobs":0})").json();
  ASSERT_EQ(json["choices"].size(), 2u) << json;
  EXPECT_EQ(json["choices"][0]["logprobs"]["tokens"], Json({"a"}));
  EXPECT_EQ(json["choices"][1]["logprobs"]["tokens"], Json({"b"}));
}

TEST_F(OpenAiHttpTest, AStreamOfSeveralPromptsEndsOnceWithTheSum) {
  dispatcher_.script = TwiceThePrompt();
  const Reply reply =
      Call("POST", "/v1/completions",
           R"({"prompt":["a","b"],"n":2,"stream":true,"stream_options":{"include_usage":true}})");
  const auto events = Events(reply.body);
  std::map<int, std::string> texts;
  std::map<int, int> ends;
  ASSERT_GE(events.size(), 2u) << reply.body;
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(Json::parse(events[events.size() - 2])["usage"]["prompt_tokens"], 20);
  for (size_t i = 0; i + 2 < events.size(); ++i) {
    const Json choice = Json::parse(events[i])["choices"][0];
    const int index = choice["index"];
    texts[index] += choice["text"].get<std::string>();
    if (!choice["finish_reason"].is_null()) ++ends[index];
  }
  EXPECT_EQ(texts, (std::map<int, std::string>{{0, "aa"}, {1, "aa!"}, {2, "bb"}, {3, "bb!"}}));
  EXPECT_EQ(ends, (std::map<int, int>{{0, 1}, {1, 1}, {2, 1}, {3, 1}}));
}

TEST_F(OpenAiHttpTest, APromptThatFailsFailsTheRequestAndCancelsTheOthers) {
  std::vector<std::string> begun;
  std::shared_ptr<AnswerSink> first;
  dispatcher_.script = [&](const RequestPtr& request, const std::shared_ptr<AnswerSink>& sink) {
    begun.push_back(std::get<std::string>(request->input()));
    if (begun.back() == "a") first = sink;
    if (begun.back() == "b")
      sink->OnFinish(WithParam(WithReason(InvalidArgument("long"), "context_length_exceeded"), "prompt"));
  };
  int cancelled = 0;
  dispatcher_.on_cancel = [&] {
    if (++cancelled > 1) return;  // the one that failed may be cancelled too
    first->OnPiece({.text = "late"});
    first->OnFinish(Cancelled("gone"));
  };
  const Reply reply = Call("POST", "/v1/completions", R"({"prompt":["a","b","c"]})");
  EXPECT_EQ(reply.status, 400) << reply.body;
  EXPECT_EQ(reply.json()["error"]["code"], "context_length_exceeded");
  EXPECT_EQ(reply.json()["error"]["param"], "prompt[1]");
  EXPECT_THAT(begun, ElementsAre("a", "b")) << "the third was not begun";
  EXPECT_GE(cancelled, 1);
}

TEST_F(OpenAiHttpTest, ABadPromptAmongSeveralIsNamed) {
  const Reply reply = Call("POST", "/v1/completions", R"({"prompt":["a","b",""]})");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.json()["error"]["param"], "prompt[2]");
}

TEST_F(OpenAiHttpTest, AClientThatGoesAwayCancelsAllItsPrompts) {
  std::vector<std::shared_ptr<AnswerSink>> sinks;
  std::promise<void> started, cancelled;
  dispatcher_.script = [&](const RequestPtr&, const auto& sink) {
    sinks.push_back(sink);
    if (sinks.size() == 2) started.set_value();
  };
  std::atomic<int> count = 0;
  dispatcher_.on_cancel = [&] {
    if (++count == 2) cancelled.set_value();
  };
  {
    Connection connection(server_->address());
    const std::string body = R"({"prompt":["a","b"],"stream":true})";
    connection.Send(Concat("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n",
                           "content-length: ", body.size(), "\r\n\r\n", body));
    started.get_future().get();
  }
  EXPECT_EQ(cancelled.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
  for (const auto& sink : sinks) sink->OnFinish(Cancelled("gone"));
}

// The memory of bodies: as the server counts it, one that needs more is refused.
TEST_F(OpenAiHttpTest, ARequestsMemoryIsTakenUntilItIsOverAndNoMoreThanItsText) {
  server_->Stop(1);
  server_ = HttpServer::StartByHead(
                {.max_buffered_body_bytes = 20'000, .error_body = HttpErrorBody},
                MakeOpenAiHandler(
                    dispatcher_, [this] { return std::make_shared<ApiOptions>(options_); }, RealClock()))
                .value();
  RequestPtr request;
  std::shared_ptr<AnswerSink> first;
  std::promise<void> started;
  bool has_begun = false;  // the server's one thread
  dispatcher_.script = [&, answer = FakeDispatcher::Answers({"hello"})](
                           const RequestPtr& begun, const std::shared_ptr<AnswerSink>& sink) {
    if (std::exchange(has_begun, true)) return answer(begun, sink);
    request = begun;
    first = sink;
    started.set_value();
  };
  Connection connection(server_->address());
  const std::string body =
      Concat(R"({"user":")", std::string(8000, 'u'), R"(","prompt":")", std::string(9000, 'p'), "\"}");
  connection.Send(Concat("POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n",
                         "content-type: application/json\r\ncontent-length: ", body.size(), "\r\n\r\n",
                         body));
  started.get_future().get();
  const auto try_bytes = [&](size_t bytes) {
    return Call("POST", "/v1/completions", Concat(R"({"prompt":")", std::string(bytes, 'x'), "\"}")).status;
  };
  EXPECT_EQ(try_bytes(12'000), 503) << "there are 11,000 bytes left at most";
  while (try_bytes(10'000) != 200) std::this_thread::yield();  // once the handler has returned
  first->OnFinish(AnswerSummary{});
  first.reset();
  request.reset();
  EXPECT_EQ(ParseReply(connection.ReadAll()).status, 200);
  while (try_bytes(19'000) != 200) std::this_thread::yield();
}

TEST_F(OpenAiHttpTest, ACompletionsLogprobsAreListsWithTheCharactersBefore) {
  dispatcher_.script = FakeDispatcher::Answers({"h\xc3\xa9", "llo"});
  const Json lists = Complete(R"(,"logprobs":2)").json()["choices"][0]["logprobs"];
  EXPECT_EQ(lists["tokens"], Json({"h\xc3\xa9", "llo"}));
  EXPECT_EQ(lists["token_logprobs"], Json({-0.5, -0.5}));
  EXPECT_EQ(lists["text_offset"], Json({0, 2})) << "characters, not bytes";
  EXPECT_EQ(lists["top_logprobs"][1], Json({{"llo", -0.5}, {"x", -1.5}}));
  EXPECT_TRUE(Complete(R"(,"logprobs":0)").json()["choices"][0]["logprobs"]["top_logprobs"].is_null());
}

TEST_F(OpenAiHttpTest, AnEchoBeginsEveryChoicesLogprobsWithThePrompts) {
  dispatcher_.script = FakeDispatcher::TwoAnswers();
  const Json json = Complete(R"(,"echo":true,"logprobs":1)").json();
  for (const char* answer : {"ab", "xy"}) {
    const Json& lists = json["choices"][answer[0] == 'a' ? 0 : 1]["logprobs"];
    EXPECT_EQ(lists["tokens"], Json({"p", "q", std::string(1, answer[0]), std::string(1, answer[1])}));
    EXPECT_EQ(lists["text_offset"], Json({0, 1, 2, 3}));
    EXPECT_TRUE(lists["token_logprobs"][0].is_null());
    EXPECT_EQ(lists["token_logprobs"][1], -0.5);
    EXPECT_TRUE(lists["top_logprobs"][0].is_null());
    EXPECT_EQ(lists["top_logprobs"][1], Json({{"r", -0.25}, {"q", -0.5}}));
  }
  EXPECT_FALSE(json.contains("prompt_logprobs"));
}

TEST_F(OpenAiHttpTest, TokensThatAreNoTextByThemselvesStayDifferentKeys) {
  dispatcher_.script = [](const RequestPtr&, const std::shared_ptr<AnswerSink>& sink) {
    sink->OnPiece(
        {.text = "\xe4\xb8\xad",
         .tokens = {{.id = 1,
                     .logprob = -3,
                     .bytes = "\xe4",
                     .top = {{2, -0.5f, "\xe5"}, {3, -1, "a"}, {4, -2, "a"}}},
                    {.id = 5, .logprob = -0.25f, .bytes = "\xb8\xad", .top = {{5, -0.25f, "\xb8\xad"}}}}});
    sink->OnChoiceEnd(0, {});
    sink->OnFinish(AnswerSummary{});
  };
  const Json lists = Complete(R"(,"logprobs":3)").json()["choices"][0]["logprobs"];
  EXPECT_EQ(lists["tokens"], Json({R"(bytes:\xe4)", R"(bytes:\xb8\xad)"}));
  EXPECT_EQ(lists["top_logprobs"][0], Json({{R"(bytes:\xe5)", -0.5}, {"a", -1}, {R"(bytes:\xe4)", -3}}))
      << "the likelier of two alike, and the one that was drawn";
  EXPECT_EQ(lists["text_offset"], Json({0, 1}));
}

TEST_F(OpenAiHttpTest, AnEchoOfTokensHasItsControlTokens) {
  dispatcher_.script = [](const RequestPtr&, const std::shared_ptr<AnswerSink>& sink) {
    sink->OnPromptTokens(
        {{.id = 1, .bytes = "<s>", .is_control = true}, {.id = 2, .logprob = -1, .bytes = "p"}});
    sink->OnPiece({.text = "a", .tokens = {{.id = 3, .logprob = -0.5f, .bytes = "a"}}});
    sink->OnChoiceEnd(0, {});
    sink->OnFinish(AnswerSummary{});
  };
  const auto lists = [&](const std::string& prompt) {
    return Call("POST", "/v1/completions", Concat(R"({"prompt":)", prompt, R"(,"echo":true,"logprobs":0})"))
        .json()["choices"][0]["logprobs"];
  };
  EXPECT_EQ(lists("[1,2]")["tokens"], Json({"<s>", "p", "a"}));
  EXPECT_EQ(lists("[1,2]")["token_logprobs"], Json({nullptr, -1, -0.5}));
  EXPECT_EQ(lists("[1,2]")["text_offset"], Json({0, 3, 4}));
  EXPECT_EQ(lists("\"p\"")["tokens"], Json({"p", "a"})) << "the text has no <s>";
}

TEST_F(OpenAiHttpTest, ACompletionStreamsItsText) {
  dispatcher_.script = FakeDispatcher::Answers({"he", "llo"});
  const Reply reply = Complete(R"(,"stream":true,"logprobs":0,"stream_options":{"include_usage":true})");
  const auto events = Events(reply.body);
  ASSERT_EQ(events.size(), 5u) << reply.body;
  const auto chunk = [&](size_t i) { return Json::parse(events[i]); };
  EXPECT_EQ(chunk(0)["object"], "text_completion");
  EXPECT_EQ(chunk(0)["choices"][0]["text"], "he");
  EXPECT_EQ(chunk(1)["choices"][0]["text"], "llo");
  EXPECT_EQ(chunk(1)["choices"][0]["logprobs"]["text_offset"], Json({2}));
  EXPECT_TRUE(chunk(1)["choices"][0]["finish_reason"].is_null());
  EXPECT_EQ(chunk(2)["choices"][0]["text"], "");
  EXPECT_EQ(chunk(2)["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(chunk(3)["choices"].empty());
  EXPECT_EQ(chunk(3)["usage"]["completion_tokens"], 2);
  EXPECT_EQ(events[4], "[DONE]");
}

TEST_F(OpenAiHttpTest, AWrongCompletionNamesItsField) {
  const Reply reply = Complete(R"(,"suffix":"x")");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.json()["error"]["param"], "suffix");
  EXPECT_EQ(Call("GET", "/v1/completions").status, 405);
}

TEST_F(OpenAiHttpTest, WhatIsNotServedMayBeThereWithTheValueThatChangesNothing) {
  EXPECT_EQ(Complete(R"(,"min_tokens":0,"length_penalty":1.0,"skip_special_tokens":true)").status, 200);
  for (const char* field :
       {R"(,"min_tokens":1)", R"(,"length_penalty":0.5)", R"(,"skip_special_tokens":true,"bad_words":["a"])",
        R"(,"return_tokens_as_token_ids":true)"}) {
    EXPECT_EQ(Complete(field).json()["error"]["code"], "unsupported_parameter") << field;
  }
}

TEST_F(OpenAiHttpTest, LongBodiesAreReadOnOtherThreads) {
  std::string tenant;
  std::thread aside;
  options_.run_aside = [&](const std::string& name, std::function<void()> task) {
    tenant = name;
    aside = std::thread(std::move(task));
    return true;
  };
  const std::string messages =
      R"({"messages":[{"role":"user","content":")" + std::string(20'000, 'x') + "\"}]}";
  EXPECT_EQ(Call("POST", "/v1/chat/completions", messages).status, 200);
  EXPECT_EQ(tenant, DefaultTenant()->name);
  aside.join();
  EXPECT_EQ(Chat().status, 200) << "a short one";
  EXPECT_FALSE(aside.joinable());
  options_.run_aside = [](const std::string&, const std::function<void()>&) { return false; };
  const Reply full = Call("POST", "/v1/chat/completions", messages);
  EXPECT_EQ(full.status, 503);
  EXPECT_EQ(full.json()["error"]["code"], "overloaded");
  EXPECT_EQ(full.headers.at("retry-after"), "1");
}

// Of a client that goes away when the test says so.
class LeavingResponder : public HttpResponder {
 public:
  void Send(int, std::string, std::string_view, const HttpHeaders&) override {}
  void StartStream(int, std::string_view, const HttpHeaders&) override {}
  bool Write(std::string) override { return false; }
  bool is_full() const override { return false; }
  void OnRoom(std::function<void()>) override {}
  void Finish() override {}
  void Abort() override {}
  void OnClose(std::function<void()> on_close) override { leave = std::move(on_close); }
  bool is_too_slow() const override { return false; }

  std::function<void()> leave;
};

TEST_F(OpenAiHttpTest, ALongBodyWhoseClientHasGoneBeforeItsTurnIsFreedAndNotRead) {
  std::function<void()> task;
  options_.run_aside = [&](const std::string&, std::function<void()> given) {
    task = std::move(given);
    return true;
  };
  dispatcher_.script = [](const RequestPtr&, const std::shared_ptr<AnswerSink>&) {
    ADD_FAILURE() << "it was dispatched";
  };
  const HttpHeadHandler on_head = MakeOpenAiHandler(
      dispatcher_, [this] { return std::make_shared<ApiOptions>(options_); }, RealClock());
  const auto responder = std::make_shared<LeavingResponder>();
  HttpRequest request;
  request.method = "POST";
  request.path = "/v1/chat/completions";
  request.headers = {{"content-type", "application/json"}, {"x-request-id", "late"}};
  const HttpHandler handle = on_head(request, responder);
  ASSERT_TRUE(handle);
  request.body = R"({"messages":[{"role":"user","content":")" + std::string(20'000, 'x') + "\"}]}";
  const auto budget = std::make_shared<ByteBudget>(100'000);
  request.body_lease = ByteLease(budget);
  ASSERT_TRUE(request.body_lease.Resize(request.body.size()));
  handle(std::move(request), responder);
  ASSERT_TRUE(task);
  EXPECT_GT(budget->used(), 20'000u);
  responder->leave();
  EXPECT_EQ(budget->used(), 0u) << "at once, not when its turn comes";
  task();
  EXPECT_THAT(dispatcher_.refused, ElementsAre("late")) << "counted and logged";
}

TEST_F(OpenAiHttpTest, AWholeAnswerHasTextUsageAndWhatItCost) {
  const Reply reply = Chat();
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_FALSE(reply.headers.at("x-request-id").empty());
  const Json json = reply.json();
  EXPECT_EQ(json["object"], "chat.completion");
  EXPECT_EQ(json["model"], "auto");
  EXPECT_EQ(json["choices"][0]["message"]["content"], "hello");
  EXPECT_EQ(json["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(json["choices"][0]["logprobs"].is_null());
  EXPECT_EQ(json["usage"]["total_tokens"], 12);
  EXPECT_EQ(json["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
  EXPECT_EQ(json["usage"]["completion_tokens_details"],
            (Json{{"accepted_prediction_tokens", 1}, {"rejected_prediction_tokens", 2}}));
  EXPECT_EQ(json["terrace"]["tier"], "base");
  EXPECT_EQ(json["terrace"]["reason"], "cascade: accepted at step 2");
  EXPECT_EQ(json["terrace"]["price_usd"], 0.25);
  EXPECT_EQ(json["terrace"]["attempts"].size(), 2u);
  const Json &first = json["terrace"]["attempts"][0], &last = json["terrace"]["attempts"][1];
  EXPECT_EQ(first["min_logprob"], -0.5);
  EXPECT_EQ(first["mean_margin"], 1.5);
  EXPECT_EQ(first["mean_entropy"], 0.75);
  EXPECT_EQ(first["score"], -0.3);
  EXPECT_EQ(first["threshold"], -0.2);
  for (const char* member : {"mean_margin", "mean_entropy", "score", "threshold"})
    EXPECT_TRUE(last[member].is_null()) << member;
}

TEST_F(OpenAiHttpTest, LogprobsNameEveryTokenAndItsRivals) {
  const Json json = Chat(R"(,"logprobs":true,"top_logprobs":2)").json();
  const Json& token = json["choices"][0]["logprobs"]["content"][0];
  EXPECT_EQ(token["token"], "hello");
  EXPECT_EQ(token["logprob"], -0.5);
  EXPECT_EQ(token["bytes"], (Json{'h', 'e', 'l', 'l', 'o'}));
  EXPECT_EQ(token["top_logprobs"].size(), 2u);
}

TEST_F(OpenAiHttpTest, AStreamIsRoleThenTextThenTheReasonThenDone) {
  dispatcher_.script = FakeDispatcher::Answers({"he", "llo"});
  const Reply reply = Chat(R"(,"stream":true)");
  ASSERT_EQ(reply.status, 200);
  EXPECT_THAT(reply.headers.at("content-type"), HasSubstr("text/event-stream"));
  const auto events = Events(reply.body);
  ASSERT_EQ(events.size(), 5u) << reply.body;
  EXPECT_EQ(Json::parse(events[0])["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(Json::parse(events[1])["choices"][0]["delta"]["content"], "he");
  EXPECT_EQ(Json::parse(events[2])["choices"][0]["delta"]["content"], "llo");
  const Json last = Json::parse(events[3]);
  EXPECT_EQ(last["object"], "chat.completion.chunk");
  EXPECT_EQ(last["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(last["terrace"]["tier"], "base");
  EXPECT_FALSE(last.contains("usage"));
  EXPECT_EQ(events[4], "[DONE]");
  EXPECT_EQ(Json::parse(events[0])["id"], last["id"]);
}

TEST_F(OpenAiHttpTest, IncludeUsageAddsOneChunkWithoutChoices) {
  const auto events = Events(Chat(R"(,"stream":true,"stream_options":{"include_usage":true})").body);
  ASSERT_EQ(events.size(), 5u);
  EXPECT_TRUE(Json::parse(events[1])["usage"].is_null());
  const Json usage = Json::parse(events[3]);
  EXPECT_TRUE(usage["choices"].empty());
  EXPECT_EQ(usage["usage"]["completion_tokens"], 2);
}

TEST_F(OpenAiHttpTest, CallsStandBesideTheTextOrInsteadOfIt) {
  dispatcher_.script = FakeDispatcher::Calls();
  const Json choice = Chat().json()["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_EQ(choice["message"]["content"], "look");
  const Json& calls = choice["message"]["tool_calls"];
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[0]["id"], "call_1");
  EXPECT_EQ(calls[0]["type"], "function");
  EXPECT_EQ(calls[0]["function"]["name"], "add");
  EXPECT_EQ(calls[0]["function"]["arguments"], R"({"b": 1, "a": 2})") << "text, as the model wrote it";
  dispatcher_.script = [](const RequestPtr&, const std::shared_ptr<AnswerSink>& sink) {
    sink->OnPiece({.tool_calls = {{.id = "call_1", .name = "now", .arguments = "{}"}}});
    sink->OnChoiceEnd(0, {});
    sink->OnFinish(AnswerSummary{});
  };
  EXPECT_TRUE(Chat().json()["choices"][0]["message"]["content"].is_null());
  dispatcher_.script = FakeDispatcher::Answers({"hello"});
  EXPECT_FALSE(Chat().json()["choices"][0]["message"].contains("tool_calls"));
}

TEST_F(OpenAiHttpTest, AStreamedCallIsItsNameAndThenItsArguments) {
  dispatcher_.script = FakeDispatcher::Calls();
  std::vector<std::string> events = Events(Chat(R"(,"stream":true)").body);
  ASSERT_EQ(events.size(), 8u);
  const auto delta = [&](size_t i) { return Json::parse(events[i])["choices"][0]["delta"]; };
  EXPECT_EQ(delta(1)["content"], "look");
  EXPECT_EQ(delta(2)["tool_calls"],
            Json::parse(
                R"([{"index":0,"id":"call_1","type":"function","function":{"name":"add","arguments":""}}])"));
  EXPECT_EQ(delta(3)["tool_calls"],
            Json::parse(R"([{"index":0,"function":{"arguments":"{\"b\": 1, \"a\": 2}"}}])"));
  EXPECT_EQ(delta(4)["tool_calls"][0]["index"], 1);
  EXPECT_EQ(delta(4)["tool_calls"][0]["id"], "call_2");
  EXPECT_EQ(delta(5)["tool_calls"][0]["index"], 1);
  EXPECT_EQ(Json::parse(events[6])["choices"][0]["finish_reason"], "tool_calls");
}

TEST_F(OpenAiHttpTest, TokenizeCountsTokens) {
  dispatcher_.tokens = {1, 2, 3};
  dispatcher_.token_bytes = {"<s>", "a", "\xe4"};
  const Reply plain = Call("POST", "/tokenize", R"({"model":"base","prompt":"ab"})");
  EXPECT_EQ(plain.json(),
            Json::parse(R"({"count":3,"max_model_len":512,"tokens":[1,2,3],"token_strs":null})"));
  EXPECT_TRUE(plain.headers.contains("x-request-id"));
  EXPECT_EQ(std::get<std::string>(dispatcher_.last_tokenized), "ab");
  const Reply chat = Call(
      "POST", "/tokenize",
      R"({"messages":[{"role":"user","content":"hi"}],"add_generation_prompt":false,"return_token_strs":true})");
  EXPECT_EQ(chat.json()["token_strs"], Json({"<s>", "a", R"(bytes:\xe4)"}));
  EXPECT_EQ(std::get<std::vector<ChatMessage>>(dispatcher_.last_tokenized)[0].content, "hi");
}

TEST_F(OpenAiHttpTest, DetokenizeGivesTheirText) {
  dispatcher_.detokenized = "ab";
  const Reply reply = Call("POST", "/detokenize", R"({"model":"base","tokens":[1,2]})");
  EXPECT_EQ(reply.json(), Json::parse(R"({"prompt":"ab"})"));
  EXPECT_EQ(std::get<std::vector<TokenId>>(dispatcher_.last_tokenized), (std::vector<TokenId>{1, 2}));
}

TEST_F(OpenAiHttpTest, TokenRoutesRefuseAsTheOthersDo) {
  const struct {
    const char *path, *body;
    int status;
    const char *code, *param;
  } cases[] = {
      {"/tokenize", "{", 400, "invalid_json", nullptr},
      {"/tokenize", "{}", 400, "invalid_value", "prompt"},
      {"/tokenize", R"({"prompt":"a","messages":[]})", 400, "invalid_value", "prompt"},
      {"/tokenize", R"({"prompt":""})", 400, "invalid_value", "prompt"},
      {"/tokenize", R"({"prompt":5})", 400, "invalid_value", "prompt"},
      {"/tokenize", R"({"messages":[]})", 400, "invalid_value", "messages"},
      {"/tokenize", R"({"prompt":"a","add_special_tokens":false})", 400, "unsupported_parameter",
       "add_special_tokens"},
      {"/tokenize", R"({"prompt":"a","chat_template":"x"})", 400, "unsupported_parameter", "chat_template"},
      {"/detokenize", "{}", 400, "invalid_value", "tokens"},
      {"/detokenize", R"({"tokens":[]})", 400, "invalid_value", "tokens"},
      {"/detokenize", R"({"tokens":["a"]})", 400, "invalid_value", "tokens"},
      {"/detokenize", R"({"tokens":[-1]})", 400, "invalid_value", "tokens"},
  };
  for (const auto& c : cases) {
    const Reply reply = Call("POST", c.path, c.body);
    EXPECT_EQ(reply.status, c.status) << c.body;
    EXPECT_EQ(reply.json()["error"]["code"], c.code) << c.body;
    EXPECT_EQ(reply.json()["error"]["param"], c.param == nullptr ? Json() : Json(c.param)) << c.body;
  }
  EXPECT_EQ(dispatcher_.refused.size(), std::size(cases));
  dispatcher_.tokenize_error = WithReason(NotFound("no such model"), "model_not_found");
  EXPECT_EQ(Call("POST", "/tokenize", R"({"model":"x","prompt":"a"})").status, 404);
  EXPECT_EQ(Call("POST", "/detokenize", R"({"model":"x","tokens":[1]})").status, 404);
  EXPECT_EQ(Call("GET", "/tokenize").headers.at("allow"), "POST");
  EXPECT_EQ(Call("POST", "/detokenize", "{}", "content-type: text/plain\r\n").status, 415);
}

TEST_F(OpenAiHttpTest, SeveralChoicesAreListedInOrderAndTheirUsageIsSummed) {
  dispatcher_.script = FakeDispatcher::TwoAnswers();
  const Json json = Chat(R"(,"n":2)").json();
  ASSERT_EQ(json["choices"].size(), 2u) << json;
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(json["choices"][i]["index"], i);
  EXPECT_EQ(json["choices"][0]["message"]["content"], "ab");
  EXPECT_EQ(json["choices"][1]["message"]["content"], "xy");
  EXPECT_EQ(json["choices"][1]["finish_reason"], "length");
  EXPECT_EQ(json["usage"]["prompt_tokens"], 10);
  EXPECT_EQ(json["usage"]["completion_tokens"], 5);
  EXPECT_EQ(json["terrace"]["price_usd"], 0.75);
  EXPECT_EQ(json["terrace"]["attempts"][1]["choice"], 1);
  EXPECT_FALSE(json.contains("prompt_logprobs"));
}

TEST_F(OpenAiHttpTest, TheChunksOfEachChoiceHaveItsIndexARoleAndAReason) {
  dispatcher_.script = FakeDispatcher::TwoAnswers();
  const auto events = Events(Chat(R"(,"n":2,"stream":true,"stream_options":{"include_usage":true})").body);
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(Json::parse(events[events.size() - 2])["usage"]["completion_tokens"], 5);
  std::map<int, std::string> texts, reasons;
  std::map<int, int> roles;
  for (size_t i = 0; i + 2 < events.size(); ++i) {
    const Json choice = Json::parse(events[i])["choices"][0];
    const int index = choice["index"];
    EXPECT_FALSE(reasons.contains(index)) << "nothing follows the reason";
    roles[index] += choice["delta"].contains("role") ? 1 : 0;
    EXPECT_EQ(roles[index], 1) << "the role comes first";
    texts[index] += choice["delta"].value("content", "");
    if (!choice["finish_reason"].is_null()) reasons[index] = choice["finish_reason"];
  }
  EXPECT_EQ(texts, (std::map<int, std::string>{{0, "ab"}, {1, "xy"}}));
  EXPECT_EQ(reasons, (std::map<int, std::string>{{0, "stop"}, {1, "length"}}));
}

TEST_F(OpenAiHttpTest, PromptLogprobsAreNullAndThenOneObjectAToken) {
  dispatcher_.script = FakeDispatcher::TwoAnswers();
  const Json json = Chat(R"(,"n":2,"prompt_logprobs":1)").json();
  const Json& scores = json["prompt_logprobs"];
  ASSERT_EQ(scores.size(), 2u) << json;
  EXPECT_TRUE(scores[0].is_null());
  EXPECT_EQ(scores[1]["token_id"], 4);
  EXPECT_EQ(scores[1]["token"], "q");
  EXPECT_EQ(scores[1]["logprob"], -0.5);
  EXPECT_EQ(scores[1]["top_logprobs"][0]["token_id"], 9);
  EXPECT_EQ(scores[1]["top_logprobs"][0]["logprob"], -0.25);
}

TEST_F(OpenAiHttpTest, AFailureAfterTheFirstPieceIsAnEventAndNoDone) {
  dispatcher_.script = FakeDispatcher::Answers({"he"}, WithReason(Unavailable("lost"), "worker_lost"));
  const Reply reply = Chat(R"(,"stream":true)");
  EXPECT_EQ(reply.status, 200);
  const auto events = Events(reply.body);
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(Json::parse(events[2])["error"]["code"], "worker_lost");
}

TEST_F(OpenAiHttpTest, AFailureBeforeTheFirstPieceHasItsOwnStatus) {
  const struct {
    Status error;
    int status;
    const char* type;
    const char* code;
  } cases[] = {
      {WithReason(InvalidArgument("long"), "context_length_exceeded"), 400, "invalid_request_error",
       "context_length_exceeded"},
      {WithReason(NotFound("model"), "model_not_found"), 404, "invalid_request_error", "model_not_found"},
      {WithReason(ResourceExhausted("full"), "overloaded"), 503, "server_error", "overloaded"},
      {WithReason(Unavailable("none"), "no_capacity"), 503, "server_error", "no_capacity"},
      {WithReason(Unavailable("refused"), "model_not_certified"), 503, "server_error", "model_not_certified"},
      {WithReason(DeadlineExceeded("late"), "deadline_exceeded"), 504, "server_error", "deadline_exceeded"},
      {Internal("bug"), 500, "server_error", "internal"},
  };
  for (const auto& c : cases) {
    dispatcher_.script = FakeDispatcher::Answers({}, c.error);
    for (const char* more : {"", R"(,"stream":true)"}) {
      const Reply reply = Chat(more);
      EXPECT_EQ(reply.status, c.status) << c.error;
      const Json error = reply.json()["error"];
      EXPECT_EQ(error.size(), 4u) << "message, type, param, code";
      EXPECT_EQ(error["type"], c.type);
      EXPECT_EQ(error["code"], c.code);
      EXPECT_EQ(reply.headers.count("retry-after"),
                c.status == 503 && std::string_view(c.code) != "model_not_certified" ? 1u : 0u);
      EXPECT_TRUE(reply.headers.contains("x-request-id"));
    }
  }
}

TEST_F(OpenAiHttpTest, ABadRequestNamesItsParameterAndIsRecorded) {
  const Reply reply =
      Chat(R"(,"temperature":9)", "content-type: application/json\r\nx-request-id: mine-1\r\n");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.json()["error"]["param"], "temperature");
  EXPECT_EQ(reply.headers.at("x-request-id"), "mine-1");
  EXPECT_THAT(dispatcher_.refused, ElementsAre("mine-1"));
}

TEST_F(OpenAiHttpTest, ARefusedRequestIsRecordedWithItsCallersTrace) {
  const std::string trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
  const auto expect_trace = [&](int status, const Reply& reply) {
    EXPECT_EQ(reply.status, status);
    ASSERT_TRUE(dispatcher_.last_refused.trace.has_value());
    EXPECT_EQ(dispatcher_.last_refused.trace->TraceIdHex(), "0af7651916cd43dd8448eb211c80319c");
    EXPECT_NE(dispatcher_.last_refused.trace->SpanIdHex(), "b7ad6b7169203331");
    dispatcher_.last_refused = {};
  };
  expect_trace(400, Chat(R"(,"temperature":9)", "content-type: application/json\r\n" + trace));
  expect_trace(415, Chat("", "content-type: text/plain\r\n" + trace));
  expect_trace(404, Call("GET", "/nothing", "", trace));
  expect_trace(404, Call("GET", "/v1/models/absent", "", trace));
}

TEST_F(OpenAiHttpTest, ARefusedRequestIsRecordedWithWhereItCameFromAndWhatHttpAnswered) {
  const auto expect_status = [&](int status, const Reply& reply) {
    EXPECT_EQ(reply.status, status);
    const RefusedRequest& refused = dispatcher_.last_refused;
    EXPECT_TRUE(refused.is_http);
    EXPECT_EQ(refused.http_status == 0 ? HttpStatusOf(refused.status) : refused.http_status, status);
    EXPECT_THAT(refused.peer, testing::StartsWith("127.0.0.1:"));
    dispatcher_.last_refused = {};
  };
  expect_status(400, Chat(R"(,"temperature":9)"));
  expect_status(405, Call("GET", "/v1/chat/completions", ""));
  expect_status(415, Chat("", "content-type: text/plain\r\n"));
  expect_status(404, Call("GET", "/nothing", ""));
}

TEST_F(OpenAiHttpTest, ARequestKnowsWhereItCameFrom) {
  RequestPtr seen;
  dispatcher_.script = [&](const RequestPtr& request, const std::shared_ptr<AnswerSink>& sink) {
    seen = request;
    FakeDispatcher::Answers({"hello"})(request, sink);
  };
  EXPECT_EQ(Chat().status, 200);
  ASSERT_NE(seen, nullptr);
  EXPECT_TRUE(seen->is_http());
  EXPECT_THAT(seen->peer(), testing::StartsWith("127.0.0.1:"));
}

TEST_F(OpenAiHttpTest, PricesAreWithoutTheLastDigitsOfASum) {
  dispatcher_.script = [](const RequestPtr&, const std::shared_ptr<AnswerSink>& sink) {
    const AnswerSummary summary{.attempts = {{.price_usd = 0.1 + 0.2}}, .price_usd = 0.7 + 0.1 + 1e-12};
    sink->OnChoiceEnd(0, summary);
    sink->OnFinish(summary);
  };
  const Json terrace = Chat().json()["terrace"];
  EXPECT_EQ(terrace["attempts"][0]["price_usd"].dump(), "0.3");
  EXPECT_EQ(terrace["price_usd"].dump(), "0.800000000001");
}

TEST_F(OpenAiHttpTest, WrongPathsMethodsAndMediaTypesAreRefused) {
  EXPECT_EQ(Call("GET", "/nothing").status, 404);
  const Reply wrong_method = Call("GET", "/v1/chat/completions");
  EXPECT_EQ(wrong_method.status, 405);
  EXPECT_EQ(wrong_method.headers.at("allow"), "POST");
  EXPECT_EQ(Call("POST", "/v1/models").headers.at("allow"), "GET");
  EXPECT_EQ(Chat("", "content-type: text/plain\r\n").status, 415);
  EXPECT_EQ(Chat("", "content-type: application/json; charset=latin1\r\n").status, 415);
  EXPECT_EQ(Chat("", "content-type: application/json\r\ncontent-encoding: gzip\r\n").status, 415);
  EXPECT_EQ(Chat("", "content-type: Application/JSON; charset=UTF-8\r\n").status, 200);
  const Reply too_large = Chat(Concat(R"(,"user":")", std::string(50'000, 'u'), "\""));
  EXPECT_EQ(too_large.status, 413);
  EXPECT_EQ(too_large.json()["error"]["code"], "body_too_large");
}

TEST_F(OpenAiHttpTest, TheTimeoutHeaderSetsTheDeadlineAndIsCapped) {
  std::vector<double> timeouts;
  dispatcher_.script = [&](const RequestPtr& request, const auto& sink) {
    timeouts.push_back(Seconds(request->deadline() - request->arrival()));
    sink->OnFinish(AnswerSummary{});
  };
  const std::string json = "content-type: application/json\r\n";
  Chat("", json);
  Chat("", json + "x-request-timeout-seconds: 2.5\r\n");
  Chat("", json + "x-request-timeout-seconds: 9999999\r\n");
  EXPECT_THAT(timeouts, ElementsAre(600, 2.5, 3600));
  EXPECT_EQ(Chat("", json + "x-request-timeout-seconds: -1\r\n").status, 400);
}

TEST_F(OpenAiHttpTest, HeadersMayNameTheTierAndLimitPriceAndTime) {
  RequestPtr seen;
  dispatcher_.script = [&](const RequestPtr& request, const auto& sink) {
    seen = request;
    sink->OnFinish(AnswerSummary{.reason = "override"});
  };
  const std::string json = "content-type: application/json\r\n";
  const Reply reply =
      Chat("", json + "X-Terrace-Tier: small\r\nX-Terrace-Max-USD: 1e-4\r\nX-Terrace-Max-Seconds: 2.5\r\n");
  EXPECT_EQ(reply.json()["terrace"]["reason"], "override") << reply.body;
  ASSERT_NE(seen, nullptr);
  EXPECT_EQ(seen->tier(), "small");
  EXPECT_EQ(seen->max_usd(), 1e-4);
  EXPECT_EQ(seen->max_seconds(), 2.5);
  Chat("", json + "x-terrace-max-seconds: 3\r\n");
  EXPECT_FALSE(seen->max_usd().has_value());
  EXPECT_EQ(seen->max_seconds(), 3);
  Chat();
  EXPECT_EQ(seen->tier(), "");
  EXPECT_FALSE(seen->has_limits());
  for (const char* header : {"x-terrace-max-usd", "x-terrace-max-seconds"}) {
    for (const char* bad : {"", "cheap", "-1", "nan", "1e7", "1, 2"}) {
      const Reply refused = Chat("", Concat(json, header, ": ", bad, "\r\n"));
      EXPECT_EQ(refused.status, 400) << bad;
      EXPECT_EQ(refused.json()["error"]["code"], "invalid_value") << bad;
      EXPECT_EQ(refused.json()["error"]["param"], header) << bad;
    }
  }
}

TEST_F(OpenAiHttpTest, AHeaderThatNamesNoTierIsNotPassedOver) {
  const Reply refused = Chat("", "content-type: application/json\r\nx-terrace-tier:\r\n");
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(refused.json()["error"]["code"], "invalid_value") << refused.body;
  EXPECT_EQ(refused.json()["error"]["param"], "x-terrace-tier") << refused.body;
}

TEST_F(OpenAiHttpTest, AHeaderMayLimitTheWorkersDrafts) {
  RequestPtr seen;
  dispatcher_.script = [&](const RequestPtr& request, const auto& sink) {
    seen = request;
    sink->OnFinish(AnswerSummary{});
  };
  const std::string json = "content-type: application/json\r\n";
  EXPECT_EQ(Chat("", json + "X-Terrace-Speculation-Max-Tokens: 0\r\n").status, 200);
  ASSERT_NE(seen, nullptr);
  EXPECT_EQ(seen->speculation_max_tokens(), 0u);
  Chat("", json + "x-terrace-speculation-max-tokens: 64\r\n");
  EXPECT_EQ(seen->speculation_max_tokens(), 64u);
  Chat();
  EXPECT_FALSE(seen->speculation_max_tokens().has_value());
  for (const char* bad : {"", "65", "-1", "few", "1.5", "1, 2"}) {
    const Reply refused = Chat("", Concat(json, "x-terrace-speculation-max-tokens: ", bad, "\r\n"));
    EXPECT_EQ(refused.status, 400) << bad;
    EXPECT_EQ(refused.json()["error"]["code"], "invalid_value") << bad;
    EXPECT_EQ(refused.json()["error"]["param"], "x-terrace-speculation-max-tokens") << bad;
  }
}

TEST_F(OpenAiHttpTest, AClientThatGoesAwayCancelsItsRequest) {
  std::promise<std::shared_ptr<AnswerSink>> started;
  std::promise<void> cancelled;
  dispatcher_.script = [&](const RequestPtr&, const auto& sink) { started.set_value(sink); };
  dispatcher_.on_cancel = [&] { cancelled.set_value(); };
  std::shared_ptr<AnswerSink> sink;
  {
    Connection connection(server_->address());
    const std::string body = R"({"messages":[{"role":"user","content":"hi"}],"stream":true})";
    connection.Send(
        Concat("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n",
               "content-length: ", body.size(), "\r\n\r\n", body));
    sink = started.get_future().get();
  }
  EXPECT_EQ(cancelled.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
  sink->OnFinish(Cancelled("gone"));
}

TEST_F(OpenAiHttpTest, ModelsAreListedAndShown) {
  dispatcher_.models = {{.id = "auto", .is_policy = true, .tiers = {"nano", "base"}, .is_ready = true},
                        {.id = "base", .context_length = 512}};
  const Json list = Call("GET", "/v1/models").json();
  EXPECT_EQ(list["object"], "list");
  ASSERT_EQ(list["data"].size(), 2u);
  EXPECT_EQ(list["data"][0]["terrace"]["tiers"], (Json{"nano", "base"}));
  const Json one = Call("GET", "/v1/models/base").json();
  EXPECT_EQ(one["id"], "base");
  EXPECT_EQ(one["terrace"]["context_length"], 512);
  dispatcher_.models.push_back({.id = "org/name 1"});
  for (const char* path :
       {"/v1/models/org/name%201", "/v1/models/org%2Fname%201", "/v1/models/org%2fname%201"})
    EXPECT_EQ(Call("GET", path).json()["id"], "org/name 1") << path;
  for (const char* path : {"/v1/models/base%", "/v1/models/base%2", "/v1/models/base%zz", "/v1/models/"})
    EXPECT_EQ(Call("GET", path).status, 404) << path;
  const Reply absent = Call("GET", "/v1/models/absent");
  EXPECT_EQ(absent.status, 404);
  EXPECT_EQ(absent.json()["error"]["code"], "model_not_found");
  EXPECT_THAT(absent.body, HasSubstr("absent"));
  EXPECT_THAT(Call("GET", "/v1/models/%3Cscript%3E").body, Not(HasSubstr("script")));
}

// One key, of the tenant "acme", which may use the model "small" alone.
class OneKey : public Authenticator {
 public:
  StatusOr<TenantPtr> Authenticate(std::string_view authorization) const override {
    if (authorization == "Bearer secret") return acme_;
    return WithReason(Status(StatusCode::kUnauthenticated, "a key is needed"), "invalid_api_key");
  }

 private:
  const TenantPtr acme_ = std::make_shared<Tenant>(Tenant{
      .name = "acme", .models = {"small"}, .max_in_flight = 2, .max_priority = 0, .cache_key = "of acme"});
};

TEST_F(OpenAiHttpTest, WorkersAddressesAreForThoseWhoNeedNoKey) {
  EXPECT_EQ(Chat().json()["terrace"]["attempts"][0]["replica"], "n:1");
  options_.authenticator = std::make_shared<OneKey>();
  const Reply reply = Chat("", "content-type: application/json\r\nauthorization: Bearer secret\r\n");
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_FALSE(reply.json()["terrace"]["attempts"][0].contains("replica"));
}

// Whenever it came it would have to wait for itself: no error that a client tries again at.
TEST_F(OpenAiHttpTest, MorePromptsThanTheTenantHasPlacesAreABadRequest) {
  options_.authenticator = std::make_shared<OneKey>();
  const auto complete = [this](const char* prompts) {
    return Call("POST", "/v1/completions",
                Concat(R"({"model":"small","max_tokens":1,"prompt":)", prompts, "}"),
                "content-type: application/json\r\nauthorization: Bearer secret\r\n");
  };
  EXPECT_EQ(complete(R"(["a","b"])").status, 200);
  const Reply reply = complete(R"(["a","b","c"])");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.json()["error"]["param"], "prompt");
  EXPECT_FALSE(reply.headers.contains("retry-after"));
}

TEST_F(OpenAiHttpTest, WithoutAKeyEveryRouteIsClosed) {
  options_.authenticator = std::make_shared<OneKey>();
  const std::pair<const char*, const char*> routes[] = {
      {"POST", "/v1/chat/completions"}, {"POST", "/v1/completions"}, {"GET", "/v1/models"},
      {"GET", "/v1/models/auto"},       {"GET", "/metrics"},         {"DELETE", "/v1/anything"}};
  for (const auto& [method, path] : routes) {
    for (const char* header : {"", "authorization: Bearer wrong\r\n", "authorization: secret\r\n"}) {
      const Reply reply = Call(method, path, "", header);
      ASSERT_EQ(reply.status, 401) << path;
      EXPECT_EQ(reply.headers.at("www-authenticate"), "Bearer");
      EXPECT_EQ(reply.json()["error"]["code"], "invalid_api_key");
      EXPECT_EQ(reply.json()["error"]["type"], "invalid_request_error");
      EXPECT_EQ(reply.body.find("wrong"), std::string::npos);
    }
  }
  EXPECT_EQ(dispatcher_.refused.size(), 18u) << "each is logged";
}

TEST_F(OpenAiHttpTest, WithoutAKeyNoBodyIsWaitedFor) {
  options_.authenticator = std::make_shared<OneKey>();
  const auto call = [this](const std::string& method, const std::string& path) {
    Connection connection(server_->address());
    connection.Send(Concat(method, " ", path, " HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"));
    return ParseReply(connection.ReadAll());
  };
  const Reply refused = call("POST", "/v1/chat/completions");
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.json()["error"]["code"], "invalid_api_key");
  EXPECT_THAT(dispatcher_.refused, ElementsAre(refused.headers.at("x-request-id")));
  EXPECT_EQ(call("GET", "/readyz").status, 200);
  EXPECT_EQ(call("POST", "/readyz").status, 405);
}

TEST_F(OpenAiHttpTest, WhatTheHeadDecidesHasNoBodyWaitedFor) {
  const auto call = [this](const std::string& method, const std::string& path, const std::string& headers) {
    Connection connection(server_->address());
    connection.Send(
        Concat(method, " ", path, " HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n", headers, "\r\n"));
    return ParseReply(connection.ReadAll());
  };
  const std::string json = "content-type: application/json\r\n";
  const struct {
    const char* method;
    const char* path;
    std::string headers;
    int status;
  } cases[] = {{"POST", "/nothing", json, 404},
               {"PUT", "/v1/completions", json, 405},
               {"POST", "/v1/models", json, 405},
               {"POST", "/v1/chat/completions", "content-type: text/plain\r\n", 415},
               {"POST", "/tokenize", json + "content-encoding: br\r\n", 415},
               {"POST", "/v1/chat/completions", json + "x-request-timeout-seconds: never\r\n", 400},
               {"GET", "/v1/models", json, 200}};
  size_t refused = 0;
  for (const auto& c : cases) {
    const Reply reply = call(c.method, c.path, c.headers);
    EXPECT_EQ(reply.status, c.status) << c.path;
    EXPECT_EQ(reply.headers.at("connection"), "close");
    if (c.status >= 400) ++refused;
  }
  EXPECT_EQ(dispatcher_.refused.size(), refused) << "each is logged";
}

TEST_F(OpenAiHttpTest, AKeyMakesTheRequestItsTenants) {
  options_.authenticator = std::make_shared<OneKey>();
  RequestPtr seen;
  dispatcher_.script = [&seen](const RequestPtr& request, const std::shared_ptr<AnswerSink>& sink) {
    seen = request;
    sink->OnFinish(Status(StatusCode::kPermissionDenied, "no"));
  };
  const std::string headers = "content-type: application/json\r\nauthorization: Bearer secret\r\n";
  const Reply reply = Chat(R"(,"cache_salt":"mine")", headers);
  EXPECT_EQ(reply.status, 403);
  EXPECT_EQ(reply.json()["error"]["type"], "permission_error");
  ASSERT_NE(seen, nullptr);
  EXPECT_EQ(seen->tenant()->name, "acme");
  EXPECT_EQ(seen->cache_salt(), seen->tenant()->CacheSalt("mine"));
  EXPECT_EQ(Chat(R"(,"priority":1)", headers).status, 400) << "above the tenant's";
}

TEST_F(OpenAiHttpTest, ALimitIs429OfATenantAnd503OfTheClusterWithTheTimeToWait) {
  dispatcher_.script = FakeDispatcher::Answers(
      {}, WithRetryAfter(WithReason(ResourceExhausted("slower"), "rate_limit_exceeded"), 2.1));
  Reply reply = Chat();
  EXPECT_EQ(reply.status, 429);
  EXPECT_EQ(reply.headers.at("retry-after"), "3");
  EXPECT_EQ(reply.json()["error"]["type"], "rate_limit_exceeded");
  dispatcher_.script =
      FakeDispatcher::Answers({}, WithRetryAfter(WithReason(ResourceExhausted("full"), "overloaded"), 7));
  reply = Chat();
  EXPECT_EQ(reply.status, 503);
  EXPECT_EQ(reply.headers.at("retry-after"), "7");
  EXPECT_EQ(Json::parse(HttpErrorBody(503, "no memory"))["error"]["code"], "overloaded") << "HTTP's own";
}

TEST_F(OpenAiHttpTest, WhatIsLeftOfATenantsLimitsIsInEveryReply) {
  options_.rate_limits = [](const Tenant&) {
    return RateLimits{.requests = RateLimit{.limit = 60, .remaining = 59, .reset_seconds = 1},
                      .tokens = RateLimit{.limit = 1000, .remaining = 7, .reset_seconds = 59.5}};
  };
  const auto expect_limits = [](const Reply& reply, int status) {
    EXPECT_EQ(reply.status, status);
    EXPECT_EQ(reply.headers.at("x-ratelimit-limit-requests"), "60");
    EXPECT_EQ(reply.headers.at("x-ratelimit-remaining-requests"), "59");
    EXPECT_EQ(reply.headers.at("x-ratelimit-reset-requests"), "1s");
    EXPECT_EQ(reply.headers.at("x-ratelimit-limit-tokens"), "1000");
    EXPECT_EQ(reply.headers.at("x-ratelimit-remaining-tokens"), "7");
    EXPECT_EQ(reply.headers.at("x-ratelimit-reset-tokens"), "59.5s");
  };
  expect_limits(Chat(), 200);
  expect_limits(Chat(R"(,"stream":true)"), 200);
  expect_limits(Call("POST", "/tokenize", R"({"prompt":"a"})"), 200);
  expect_limits(Chat(R"(,"temperature":9)"), 400);
  dispatcher_.script = FakeDispatcher::Answers(
      {}, WithRetryAfter(WithReason(ResourceExhausted("slower"), "rate_limit_exceeded"), 2));
  expect_limits(Chat(), 429);
  EXPECT_FALSE(Call("GET", "/healthz").headers.contains("x-ratelimit-limit-requests")) << "of nobody";
}

TEST_F(OpenAiHttpTest, ProbesNeedNoKey) {
  options_.authenticator = std::make_shared<OneKey>();
  EXPECT_EQ(Call("GET", "/healthz").status, 200);
  EXPECT_EQ(Call("GET", "/readyz").status, 200);
  EXPECT_EQ(Call("POST", "/readyz").status, 405);
  options_.is_ready = [] { return false; };
  EXPECT_EQ(Call("GET", "/healthz").status, 200);
  EXPECT_EQ(Call("GET", "/readyz").status, 503);
}

TEST_F(OpenAiHttpTest, ATraceGoesOnUnderASpanOfTheRouters) {
  std::vector<TraceContext> seen;
  dispatcher_.script = [&seen](const RequestPtr& request, const std::shared_ptr<AnswerSink>& sink) {
    seen.push_back(request->trace());
    sink->OnFinish(AnswerSummary{});
  };
  const std::string json = "content-type: application/json\r\n";
  Chat("", json +
               "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
               "tracestate: rojo=1\r\ntracestate: congo=2\r\n");
  Chat("", json);
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[0].state, "rojo=1,congo=2");
  EXPECT_EQ(seen[0].TraceIdHex(), "0af7651916cd43dd8448eb211c80319c");
  EXPECT_NE(seen[0].SpanIdHex(), "b7ad6b7169203331");
  EXPECT_EQ(seen[0].flags, 1);
  EXPECT_NE(seen[1].TraceIdHex(), seen[0].TraceIdHex());
}

}  // namespace
}  // namespace terrace
