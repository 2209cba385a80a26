#include "base/http_server.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <future>
#include <mutex>
#include <queue>
#include <thread>

#include "base/host_port.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

// A blocking client on a raw socket. A read that takes a minute is a failure, not a wait.
class Client {
 public:
  explicit Client(const std::string& address) {
    const HostPort peer = ParseHostPort(address).value();
    addrinfo hints = {}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    CHECK(getaddrinfo(peer.host.c_str(), std::to_string(peer.port).c_str(), &hints, &found) == 0);
    socket_ = socket(found->ai_family, SOCK_STREAM, 0);
    const timeval patience = {.tv_sec = 60, .tv_usec = 0};
    setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    is_connected_ = connect(socket_, found->ai_addr, found->ai_addrlen) == 0;
    freeaddrinfo(found);
  }
  ~Client() { Close(); }
  Client(Client&& other) : socket_(std::exchange(other.socket_, -1)), is_connected_(other.is_connected_) {}

  bool is_connected() const { return is_connected_; }
  void Close() {
    if (socket_ >= 0) close(std::exchange(socket_, -1));
  }
  void Write(std::string_view text) {
    while (!text.empty()) {
      const ssize_t sent = send(socket_, text.data(), text.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;  // the server hung up: what it said comes out of the next read
      text.remove_prefix(static_cast<size_t>(sent));
    }
  }
  // Everything up to and with `end`, or up to the end of the connection.
  std::string ReadUntil(std::string_view end) {
    while (buffer_.find(end) == std::string::npos) {
      char bytes[4096];
      const ssize_t received = recv(socket_, bytes, sizeof bytes, 0);
      EXPECT_TRUE(received >= 0 || errno == ECONNRESET) << "nothing came; so far: " << buffer_;
      if (received <= 0) return std::exchange(buffer_, {});
      buffer_.append(bytes, static_cast<size_t>(received));
    }
    const size_t size = buffer_.find(end) + end.size();
    const std::string text = buffer_.substr(0, size);
    buffer_.erase(0, size);
    return text;
  }
  std::string ReadHead() { return ReadUntil("\r\n\r\n"); }
  std::string ReadToEnd() { return ReadUntil(std::string(1, '\0')); }
  std::string Get(const std::string& path, const std::string& end_of_answer) {
    Write("GET " + path + " HTTP/1.1\r\nHost: test\r\n\r\n");
    return ReadUntil(end_of_answer);
  }

 private:
  int socket_;
  bool is_connected_;
  std::string buffer_;
};

// A server whose handler hands each request and its responder to the test.
class HttpServerTest : public testing::Test {
 protected:
  struct Call {
    HttpRequest request;
    std::shared_ptr<HttpResponder> responder;
  };

  void Start(HttpServerOptions options = {}) {
    server_ = HttpServer::Start(std::move(options), [this](HttpRequest request,
                                                           std::shared_ptr<HttpResponder> responder) {
                std::lock_guard lock(mutex_);
                calls_.push({std::move(request), std::move(responder)});
                arrived_.notify_all();
              }).value();
  }
  void StartEcho(HttpServerOptions options = {}) {
    server_ = HttpServer::Start(std::move(options), [](HttpRequest request,
                                                       std::shared_ptr<HttpResponder> responder) {
                responder->Send(200, request.path + "|" + request.body + "~", "text/plain");
              }).value();
  }
  Call NextCall() {
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [this] { return !calls_.empty(); });
    Call call = std::move(calls_.front());
    calls_.pop();
    return call;
  }
  Client Connect() { return Client(server_->address()); }

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::queue<Call> calls_;
  std::unique_ptr<HttpServer> server_;
};

constexpr char kRequest[] = "GET /x HTTP/1.1\r\nHost: test\r\n\r\n";

TEST_F(HttpServerTest, HandsOverARequestAndSendsTheAnswer) {
  Start();
  Client client = Connect();
  client.Write(
      "POST /v1/chat?a=1&b=2 HTTP/1.1\r\nHost: test\r\nX-Id: first\r\nX-ID: last\r\nContent-Length: "
      "5\r\n\r\nhello");
  Call call = NextCall();
  EXPECT_EQ(call.request.method, "POST");
  EXPECT_EQ(call.request.path, "/v1/chat");
  EXPECT_EQ(call.request.query, "a=1&b=2");
  EXPECT_EQ(call.request.headers["x-id"], "last");
  EXPECT_EQ(call.request.headers.count("X-Id"), 0u);
  EXPECT_EQ(call.request.body, "hello");
  EXPECT_THAT(call.request.peer, StartsWith("127.0.0.1:"));
  call.responder->Send(503, "{}", "application/json", {{"Retry-After", "1"}, {"X-Id", "a\r\nInjected: b"}});
  EXPECT_THAT(
      client.ReadHead(),
      AllOf(StartsWith("HTTP/1.1 503 Service Unavailable\r\n"), HasSubstr("\r\nContent-Length: 2\r\n"),
            HasSubstr("\r\nContent-Type: application/json\r\n"), HasSubstr("\r\nServer: terrace\r\n"),
            HasSubstr("\r\nDate: "), HasSubstr("\r\nRetry-After: 1\r\n"),
            HasSubstr("\r\nX-Id: a  Injected: b\r\n"), Not(HasSubstr("Connection:"))));
  EXPECT_EQ(client.ReadUntil("}"), "{}");
}

TEST_F(HttpServerTest, ReadsChunkedBodies) {
  StartEcho();
  Client client = Connect();
  client.Write("POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
  client.Write("2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("~"), EndsWith("\r\n\r\n/p|abcde~"));
}

TEST_F(HttpServerTest, KeepsAConnectionUntilAskedToCloseIt) {
  StartEcho();
  Client client = Connect();
  EXPECT_THAT(client.Get("/1", "~"), EndsWith("/1|~"));
  EXPECT_THAT(client.Get("/2", "~"), EndsWith("/2|~"));
  client.Write("GET /3 HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.ReadToEnd(), AllOf(HasSubstr("\r\nConnection: close\r\n"), EndsWith("/3|~")));
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrder) {
  Start();
  Client client = Connect();
  client.Write(
      "GET /1 HTTP/1.1\r\n\r\nPOST /2 HTTP/1.1\r\nContent-Length: 1\r\n\r\nxGET /3 HTTP/1.1\r\n\r\n");
  for (const char* path : {"/1", "/2", "/3"}) {
    Call call = NextCall();
    EXPECT_EQ(call.request.path, path);
    call.responder->StartStream(200, "text/plain");
    EXPECT_THAT(client.ReadHead(), StartsWith("HTTP/1.1 200 OK\r\n"));
    call.responder->Finish();
    EXPECT_EQ(client.ReadHead(), "0\r\n\r\n");
  }
}

TEST_F(HttpServerTest, StreamsChunksAsTheyAreWritten) {
  Start();
  Client client = Connect();
  for (int round = 0; round < 2; ++round) {  // the connection is good for another request
    client.Write(kRequest);
    const auto responder = NextCall().responder;
    responder->StartStream(200, "text/event-stream", {{"X-Request-Id", "7"}});
    EXPECT_THAT(client.ReadHead(),
                AllOf(HasSubstr("\r\nTransfer-Encoding: chunked\r\n"), HasSubstr("\r\nX-Request-Id: 7\r\n"),
                      Not(HasSubstr("Content-Length"))));
    EXPECT_TRUE(responder->Write("data: hello\n\n"));
    EXPECT_EQ(client.ReadUntil("\n\n\r\n"), "d\r\ndata: hello\n\n\r\n");
    EXPECT_TRUE(responder->Write(""));
    EXPECT_TRUE(responder->Write("x"));
    responder->Finish();
    EXPECT_FALSE(responder->Write("too late"));
    EXPECT_EQ(client.ReadHead(), "1\r\nx\r\n0\r\n\r\n");
  }
}

TEST_F(HttpServerTest, AnHttp10ClientGetsAStreamWithoutChunks) {
  Start();
  Client client = Connect();
  client.Write("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const auto responder = NextCall().responder;
  responder->StartStream(200, "text/plain");
  responder->Write("abc");
  responder->Write("def");
  responder->Finish();
  EXPECT_THAT(client.ReadToEnd(), AllOf(EndsWith("\r\n\r\nabcdef"), HasSubstr("\r\nConnection: close\r\n"),
                                        Not(HasSubstr("chunked"))));
}

TEST_F(HttpServerTest, HeadAndUnknownMethodsReachTheHandler) {
  Start();
  Client client = Connect();
  client.Write("HEAD / HTTP/1.1\r\n\r\nBREW / HTTP/1.1\r\n\r\n");
  Call head = NextCall();
  EXPECT_EQ(head.request.method, "HEAD");
  head.responder->Send(200, "body", "text/plain");
  EXPECT_THAT(client.ReadHead(), HasSubstr("\r\nContent-Length: 4\r\n"));
  Call brew = NextCall();
  EXPECT_EQ(brew.request.method, "BREW");
  brew.responder->Send(204, "", "");
  EXPECT_THAT(client.ReadHead(), AllOf(StartsWith("HTTP/1.1 204 "), Not(HasSubstr("Content-"))));
}

TEST_F(HttpServerTest, TellsAWaitingClientToContinue) {
  StartEcho();
  Client client = Connect();
  client.Write("POST /p HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.ReadHead(), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Write("abc");
  EXPECT_THAT(client.ReadUntil("~"), AllOf(StartsWith("HTTP/1.1 200 OK\r\n"), EndsWith("/p|abc~")));
}

TEST_F(HttpServerTest, RefusesWhatItCannotTrustAndHangsUp) {
  HttpServerOptions options;
  options.max_header_bytes = 1000;
  options.max_body_bytes = 1000;
  options.error_body = [](int status, std::string_view message) {
    return Concat("{", status, " ", message, "}");
  };
  options.error_headers = [] { return HttpHeaders{{"x-request-id", "drawn"}}; };
  StartEcho(options);
  const std::string long_body(1001, 'x');
  std::string tiny_chunks;
  for (int i = 0; i < 900; ++i) tiny_chunks += "1;" + std::string(100, 'e') + "\r\nx\r\n";
  const struct {
    const char* name;
    std::string request;
    int status;
    const char* message;
  } cases[] = {
      {"long header", "GET / HTTP/1.1\r\nX: " + std::string(2000, 'x') + "\r\n\r\n", 431,
       "larger than 1000 bytes"},
      {"endless header", "GET / HTTP/1.1\r\nX: " + std::string(2000, 'x'), 431, "larger than 1000 bytes"},
      {"long target", "GET /" + std::string(2000, 'x') + " HTTP/1.1\r\n\r\n", 431, "larger than 1000 bytes"},
      {"declared body", "POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", 413, "larger than 1000 bytes"},
      {"declared body, sent", "POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n" + long_body, 413,
       "larger than 1000 bytes"},
      {"declared body, asked", "POST / HTTP/1.1\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n", 413,
       "larger than 1000 bytes"},
      {"chunked body", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + long_body, 413,
       "larger than 1000 bytes"},
      {"tiny chunks", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + tiny_chunks, 413,
       "too large"},
      {"endless chunk header",
       "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + std::string(3000, 'e'), 431, "larger"},
      {"bad chunk", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "malformed"},
      {"two framings", "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
       400, "malformed"},
      {"two framings turned",
       "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400,
       "malformed"},
      {"two lengths", "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400,
       "malformed"},
      {"signed length", "POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc", 400, "malformed"},
      {"other encoding", "POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "only transfer encoding"},
      {"encoding around chunks", "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400,
       "only transfer encoding"},
      {"not HTTP", "hello\r\n\r\n", 400, "malformed"},
      {"line ends", "GET / HTTP/1.1\nHost: x\n\n", 400, "malformed"},
      {"NUL", std::string("GET / HTTP/1.1\r\nX: \0\r\n\r\n", 25), 400, "malformed"},
      {"version", "GET / HTTP/2.0\r\n\r\n", 400, "malformed"},
      {"expectation", "POST / HTTP/1.1\r\nContent-Length: 3\r\nExpect: magic\r\n\r\n", 417, "expectation"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    Client client = Connect();
    client.Write(c.request);
    EXPECT_THAT(client.ReadToEnd(),
                AllOf(StartsWith(Concat("HTTP/1.1 ", c.status, " ")), HasSubstr("\r\nConnection: close\r\n"),
                      HasSubstr("\r\nx-request-id: drawn\r\n"), HasSubstr(Concat("{", c.status, " ")),
                      HasSubstr(c.message), EndsWith("}")));
  }
  EXPECT_THAT(Connect().Get("/still-there", "~"), HasSubstr("/still-there|"));
}

TEST_F(HttpServerTest, AcceptsWhatIsJustWithinTheLimits) {
  HttpServerOptions options;
  options.max_body_bytes = 1000;
  StartEcho(options);
  Client client = Connect();
  client.Write("POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + std::string(1000, 'x'));
  EXPECT_THAT(client.ReadUntil("~"), StartsWith("HTTP/1.1 200 "));
  client.Write("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + std::string(1000, 'x') +
               "\r\n0\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("~"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpServerTest, SlowRequestsTimeOut) {
  HttpServerOptions options;
  options.header_timeout_seconds = options.body_timeout_seconds = options.idle_timeout_seconds = 0.05;
  StartEcho(options);
  Client silent = Connect(), header = Connect(), body = Connect(), idle = Connect();
  header.Write("GET / HT");
  body.Write("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab");
  EXPECT_THAT(header.ReadToEnd(), StartsWith("HTTP/1.1 408 "));
  EXPECT_THAT(body.ReadToEnd(), StartsWith("HTTP/1.1 408 "));
  EXPECT_EQ(silent.ReadToEnd(), "");
}

TEST_F(HttpServerTest, IdleConnectionsAreClosed) {
  HttpServerOptions options;
  options.idle_timeout_seconds = 0.05;
  StartEcho(options);
  Client client = Connect();
  client.Write(kRequest);
  EXPECT_THAT(client.ReadToEnd(), EndsWith("/x|~"));
}

TEST_F(HttpServerTest, TellsTheHandlerThatThePeerIsGone) {
  Start();
  for (const bool streaming : {false, true}) {
    Client client = Connect();
    client.Write(kRequest);
    const auto responder = NextCall().responder;
    if (streaming) {
      responder->StartStream(200, "text/plain");
      client.ReadHead();
    }
    std::promise<void> gone;
    responder->OnClose([] { FAIL() << "replaced by the next"; });
    responder->OnClose([&] { gone.set_value(); });
    client.Close();
    gone.get_future().get();
    EXPECT_FALSE(responder->Write("x"));
    int late = 0;
    responder->OnClose([&] { ++late; });
    EXPECT_EQ(late, 1) << "an OnClose after the fact is called at once";
    responder->Send(200, "nobody reads this");
    responder->Finish();
    responder->Abort();
  }
}

TEST_F(HttpServerTest, NoticesThatThePeerIsGoneBehindAPipelinedRequest) {
  Start();
  Client client = Connect();
  client.Write(std::string(kRequest) + kRequest);
  const auto responder = NextCall().responder;
  std::promise<void> gone;
  responder->OnClose([&] { gone.set_value(); });
  client.Close();
  gone.get_future().get();
}

TEST_F(HttpServerTest, AnEndedAnswerIsNeverReportedAsClosed) {
  Start();
  std::atomic<int> closed = 0;
  for (const bool streaming : {false, true}) {
    Client client = Connect();
    client.Write(kRequest);
    const auto responder = NextCall().responder;
    responder->OnClose([&] { ++closed; });
    if (streaming) {
      responder->StartStream(200, "text/plain");
      responder->Finish();
    } else {
      responder->Send(200, "{}");
    }
    client.Close();
    responder->OnClose([&] { ++closed; });
  }
  server_.reset();
  EXPECT_EQ(closed, 0);
}

TEST_F(HttpServerTest, AnAbortedStreamHasNoEnd) {
  Start();
  Client client = Connect();
  client.Write(kRequest);
  const auto responder = NextCall().responder;
  responder->StartStream(200, "text/plain");
  responder->Write("last words");
  responder->Abort();
  EXPECT_THAT(client.ReadToEnd(), EndsWith("\r\n\r\na\r\nlast words\r\n"));
}

TEST_F(HttpServerTest, RefusesToBufferForAPeerThatDoesNotRead) {
  HttpServerOptions options;
  options.stream_buffer_bytes = 10'000;
  Start(options);
  Client client = Connect();
  client.Write(kRequest);
  const auto responder = NextCall().responder;
  responder->StartStream(200, "text/plain");
  size_t accepted = 0;
  while (responder->Write(std::string(1000, 'x'))) ++accepted;  // ends when the sockets' buffers are full
  EXPECT_GE(accepted, 10u);
  EXPECT_FALSE(responder->Write("x")) << "a stream with a hole in it does not go on";
  responder->Finish();
  EXPECT_THAT(client.ReadToEnd(), Not(EndsWith("\r\n0\r\n\r\n")));
}

TEST_F(HttpServerTest, ARequestThatIsNotAnsweredGetsAnError) {
  server_ = HttpServer::Start({}, [](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
              if (request.path == "/throw") throw std::runtime_error("a fault in the handler");
              if (request.path == "/stream") responder->StartStream(200, "text/plain");
            }).value();
  Client client = Connect();
  EXPECT_THAT(client.Get("/drop", "not answered\n"), StartsWith("HTTP/1.1 500 Internal Server Error\r\n"));
  EXPECT_THAT(client.Get("/throw", "not answered\n"), StartsWith("HTTP/1.1 500 Internal Server Error\r\n"));
  client.Write("GET /stream HTTP/1.1\r\n\r\n");
  EXPECT_THAT(client.ReadToEnd(), AllOf(StartsWith("HTTP/1.1 200 "), EndsWith("\r\n\r\n")));
}

TEST_F(HttpServerTest, StopLetsAnswersFinish) {
  Start();
  Client streaming = Connect(), idle = Connect();
  streaming.Write(kRequest);
  const auto responder = NextCall().responder;
  responder->StartStream(200, "text/plain");
  streaming.ReadHead();
  std::jthread stopper([this] { server_->Stop(60); });
  EXPECT_EQ(idle.ReadToEnd(), "") << "idle connections are closed at once";
  EXPECT_FALSE(Connect().is_connected());
  EXPECT_TRUE(responder->Write("x"));
  responder->Finish();
  EXPECT_EQ(streaming.ReadToEnd(), "1\r\nx\r\n0\r\n\r\n");
}

TEST_F(HttpServerTest, StopWithoutGraceCutsAnswers) {
  Start();
  Client client = Connect();
  client.Write(kRequest);
  const auto responder = NextCall().responder;
  responder->StartStream(200, "text/plain");
  client.ReadHead();
  std::promise<void> closed;
  responder->OnClose([&] { closed.set_value(); });
  server_->Stop(0);
  closed.get_future().get();
  EXPECT_EQ(client.ReadToEnd(), "");
  server_.reset();
  EXPECT_FALSE(responder->Write("x")) << "a responder may outlive its server";
}

TEST_F(HttpServerTest, ServesManyConnectionsFromManyThreads) {
  HttpServerOptions options;
  options.threads = 2;
  StartEcho(options);
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      std::vector<Client> clients;
      for (int c = 0; c < 16; ++c) clients.push_back(Connect());
      for (int round = 0; round < 5; ++round) {
        for (size_t c = 0; c < clients.size(); ++c) {
          const std::string path = Concat("/", t, "/", round, "/", c);
          EXPECT_THAT(clients[c].Get(path, "|~"), EndsWith(path + "|~"));
        }
      }
    });
  }
}

TEST_F(HttpServerTest, StreamsFromManyThreadsAtOnce) {
  HttpServerOptions options;
  options.threads = 2;
  Start(options);
  std::vector<Client> clients;
  for (int i = 0; i < 8; ++i) clients.push_back(Connect());
  for (Client& client : clients) client.Write(kRequest);
  std::vector<std::jthread> writers;
  for (size_t i = 0; i < clients.size(); ++i) {
    writers.emplace_back([responder = NextCall().responder] {
      responder->StartStream(200, "text/plain");
      for (int n = 0; n < 200; ++n) EXPECT_TRUE(responder->Write("x"));
      responder->Finish();
    });
  }
  std::string want;
  for (int n = 0; n < 200; ++n) want += "1\r\nx\r\n";
  for (Client& client : clients) EXPECT_THAT(client.ReadUntil("\r\n0\r\n\r\n"), EndsWith(want + "0\r\n\r\n"));
}

TEST_F(HttpServerTest, ConnectionsPastTheLimitWait) {
  HttpServerOptions options;
  options.max_connections = 1;
  StartEcho(options);
  Client first = Connect();
  EXPECT_THAT(first.Get("/1", "~"), EndsWith("/1|~"));
  Client second = Connect();
  second.Write(kRequest);
  EXPECT_THAT(first.Get("/2", "~"), EndsWith("/2|~"));
  first.Close();
  EXPECT_THAT(second.ReadUntil("~"), EndsWith("/x|~"));
}

TEST_F(HttpServerTest, SaysWhyItCannotListen) {
  StartEcho();
  const auto fail = [](const std::string& address) {
    HttpServerOptions options;
    options.address = address;
    return HttpServer::Start(options, nullptr).status();
  };
  const Status in_use = fail(server_->address());
  EXPECT_EQ(in_use.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Message(in_use), server_->address() + ": Address already in use");
  EXPECT_EQ(fail("192.0.2.1:0").code(), StatusCode::kUnavailable);
  EXPECT_EQ(Message(fail("8080")), "\"8080\" is not host:port");
}

TEST_F(HttpServerTest, ListensOnIPv6) {
  HttpServerOptions options;
  options.address = "[::1]:0";
  auto server = HttpServer::Start(options, [](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    responder->Send(200, request.peer, "text/plain");
  });
  if (!server.ok()) GTEST_SKIP() << server.status();
  EXPECT_THAT((*server)->address(), StartsWith("[::1]:"));
  EXPECT_THAT(HttpGet((*server)->address() + "/", 60).value(), StartsWith("[::1]:"));
}

TEST_F(HttpServerTest, HttpGetFetchesOrSaysWhatIsWrong) {
  server_ = HttpServer::Start({}, [](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
              if (request.path == "/ok") return responder->Send(200, request.query, "text/plain");
              if (request.path == "/stream") {
                responder->StartStream(200, "text/plain");
                responder->Write("a");
                responder->Write("b");
                return responder->Finish();
              }
              if (request.path == "/late") return responder->OnClose([responder] {});
              responder->Send(request.path == "/readyz" ? 503 : 404, "no workers", "text/plain");
            }).value();
  const std::string address = server_->address();
  EXPECT_EQ(*HttpGet(address + "/ok?x=1", 60), "x=1");
  EXPECT_EQ(*HttpGet("http://" + address + "/stream", 60), "ab");
  EXPECT_EQ(HttpGet(address, 60).status().code(), StatusCode::kNotFound);
  const Status unready = HttpGet(address + "/readyz", 60).status();
  EXPECT_EQ(unready.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Message(unready), address + "/readyz: HTTP 503: no workers");
  EXPECT_EQ(HttpGet(address + "/late", 0.05).status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(HttpGet("nonsense", 60).status().code(), StatusCode::kInvalidArgument);
  server_.reset();
  EXPECT_EQ(Message(HttpGet(address + "/ok", 60).status()), address + "/ok: Connection refused");
}

TEST(HostPort, ParsesWhatPeopleWrite) {
  for (const char* text : {"127.0.0.1:8080", "localhost:0", "[::1]:65535", "a.b-c:1"}) {
    EXPECT_EQ(ParseHostPort(text).value().ToString(), text);
  }
  for (const char* text :
       {"", ":", "a", "a:", ":1", "a:65536", "a:-1", "a:1x", "::1:80", "[]:1", "[a:1", "a/b:1", "[a]:1"}) {
    EXPECT_EQ(ParseHostPort(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace terrace
