#include "base/http_server.h"

#include <malloc.h>
#include <netdb.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <csignal>
#include <filesystem>
#include <future>
#include <mutex>
#include <optional>
#include <queue>
#include <set>
#include <thread>

#include "base/host_port.h"
#include "base/testing_tls.h"
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
  Client(Client&& other)
      : socket_(std::exchange(other.socket_, -1)),
        is_connected_(other.is_connected_),
        ssl_(std::move(other.ssl_)) {}

  bool is_connected() const { return is_connected_; }
  // From now on all is TLS; false when the handshake failed. `alpn` as on the wire.
  bool StartTls(const TlsFiles& files, const std::string& alpn = "") {
    const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()),
                                                                    &SSL_CTX_free);
    CHECK(SSL_CTX_load_verify_locations(context.get(), files.ca.c_str(), nullptr) == 1);
    SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
    if (!files.certificate.empty()) {
      CHECK(SSL_CTX_use_certificate_chain_file(context.get(), files.certificate.c_str()) == 1);
      CHECK(SSL_CTX_use_PrivateKey_file(context.get(), files.key.c_str(), SSL_FILETYPE_PEM) == 1);
    }
    ssl_.reset(SSL_new(context.get()));
    const auto* const protocols = reinterpret_cast<const unsigned char*>(alpn.data());
    if (!alpn.empty())
      CHECK(SSL_set_alpn_protos(ssl_.get(), protocols, static_cast<unsigned>(alpn.size())) == 0);
    SSL_set_fd(ssl_.get(), socket_);
    return SSL_connect(ssl_.get()) == 1;
  }
  std::string alpn() const {
    const unsigned char* name = nullptr;
    unsigned size = 0;
    SSL_get0_alpn_selected(ssl_.get(), &name, &size);
    return {reinterpret_cast<const char*>(name), size};
  }
  void Close() {
    ssl_.reset();
    if (socket_ >= 0) close(std::exchange(socket_, -1));
  }
  void Write(std::string_view text) {
    while (!text.empty()) {
      const ssize_t sent = ssl_ == nullptr
                               ? send(socket_, text.data(), text.size(), MSG_NOSIGNAL)
                               : SSL_write(ssl_.get(), text.data(), static_cast<int>(text.size()));
      if (sent <= 0) return;  // the server hung up: what it said comes out of the next read
      text.remove_prefix(static_cast<size_t>(sent));
    }
  }
  // Everything up to and with `end`, or up to the end of the connection.
  std::string ReadUntil(std::string_view end) {
    while (buffer_.find(end) == std::string::npos) {
      char bytes[4096];
      const ssize_t received =
          ssl_ == nullptr ? recv(socket_, bytes, sizeof bytes, 0) : SSL_read(ssl_.get(), bytes, sizeof bytes);
      EXPECT_TRUE(received >= 0 || errno == ECONNRESET || ssl_ != nullptr)
          << "nothing came; so far: " << buffer_;
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
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl_{nullptr, &SSL_free};
  std::string buffer_;
};

// A server whose handler hands each request and its responder to the test.
class HttpServerTest : public testing::Test {
 protected:
  struct Call {
    HttpRequest request;
    std::shared_ptr<HttpResponder> responder;
  };

  HttpHandler ToTheTest() {
    return [this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
      std::lock_guard lock(mutex_);
      calls_.push({std::move(request), std::move(responder)});
      arrived_.notify_all();
    };
  }
  void Start(HttpServerOptions options = {}) {
    server_ = HttpServer::Start(std::move(options), ToTheTest()).value();
  }
  // Only requests with a header x-key come to the test.
  void StartWithKeys() {
    const auto by_head = [this](const HttpRequest& head, const std::shared_ptr<HttpResponder>& responder) {
      EXPECT_EQ(head.body, "");
      if (head.headers.contains("x-key")) return ToTheTest();
      responder->Send(401, "no key");
      return HttpHandler();
    };
    server_ = HttpServer::StartByHead({}, by_head).value();
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
  EXPECT_EQ(call.request.headers["x-id"], "first, last");
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

TEST_F(HttpServerTest, AnswersThousandsOfPipelinedRequests) {
  StartEcho();
  Client client = Connect();
  constexpr int kRequests = 3000;
  std::string requests;
  for (int i = 0; i < kRequests; ++i) requests += Concat("GET /", i, " HTTP/1.1\r\n\r\n");
  std::jthread writer([&] { client.Write(requests); });  // while the answers are read: nothing holds them all
  for (int i = 0; i < kRequests; ++i) ASSERT_THAT(client.ReadUntil("~"), EndsWith(Concat("/", i, "|~")));
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
  options.max_headers = 3;
  options.max_target_bytes = 500;
  options.max_body_bytes = 1000;
  std::atomic<size_t> counted = 0;
  options.on_rejected = [&](const HttpRejection& rejection) {
    counted += std::ranges::count(kHttpRejections, rejection.reason);
    EXPECT_THAT(rejection.headers,
                testing::Contains(std::pair<std::string, std::string>("x-request-id", "drawn")));
    EXPECT_GE(rejection.status, 400);
    EXPECT_THAT(rejection.peer, StartsWith("127.0.0.1:"));
  };
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
      {"long target", "GET /" + std::string(2000, 'x') + " HTTP/1.1\r\n\r\n", 414, "longer than 500 bytes"},
      {"many headers", "GET / HTTP/1.1\r\na: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\n\r\n", 431, "more than 3 headers"},
      {"declared body", "POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", 413, "larger than 1000 bytes"},
      {"declared body, sent", "POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n" + long_body, 413,
       "larger than 1000 bytes"},
      {"declared body, asked", "POST / HTTP/1.1\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n", 413,
       "larger than 1000 bytes"},
      {"chunked body", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + long_body, 413,
       "larger than 1000 bytes"},
      {"tiny chunks", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + tiny_chunks, 413,
       "too large for what they carry"},
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
      {"lengths in one line", "POST / HTTP/1.1\r\nContent-Length: 3, 4\r\n\r\nabcd", 400, "malformed"},
      {"signed length", "POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc", 400, "malformed"},
      {"negative length", "POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\nabc", 400, "malformed"},
      {"hexadecimal length", "POST / HTTP/1.1\r\nContent-Length: 0x3\r\n\r\nabc", 400, "malformed"},
      {"huge length", "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\nabc", 400, "malformed"},
      {"two encodings",
       "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400,
       "malformed"},
      {"folded header", "GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", 400, "malformed"},
      {"hidden length", "POST / HTTP/1.1\r\nContent-Length : 3\r\n\r\nabc", 400, "malformed"},
      {"CONNECT", "CONNECT example.org:443 HTTP/1.1\r\n\r\n", 405, "no CONNECT"},
      {"TRACE", "TRACE / HTTP/1.1\r\n\r\n", 405, "no TRACE"},
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
  EXPECT_EQ(counted, std::size(cases));
}

TEST_F(HttpServerTest, AMethodThatIsNotServedIsToldWhichAre) {
  StartEcho();
  Client client = Connect();
  client.Write("TRACE / HTTP/1.1\r\n\r\n");
  EXPECT_THAT(client.ReadToEnd(), HasSubstr("\r\nallow: GET, HEAD, POST\r\n"));
}

TEST_F(HttpServerTest, WhatIsBehindABodyIsNoHeader) {
  Start();
  Client client = Connect();
  client.Write("POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: mine\r\n\r\n");
  Call call = NextCall();
  EXPECT_EQ(call.request.headers.count("authorization"), 0u);
  call.responder->Send(200, "{}");
}

TEST_F(HttpServerTest, WhatTheHeadIsRefusedForHasNoBodyRead) {
  StartWithKeys();
  for (const char* framing : {"Content-Length: 1000000\r\n", "Transfer-Encoding: chunked\r\n",
                              "Content-Length: 5\r\nExpect: 100-continue\r\n"}) {
    Client client = Connect();
    client.Write(Concat("POST /x HTTP/1.1\r\n", framing, "\r\n"));  // and nothing of the body
    EXPECT_THAT(client.ReadToEnd(), AllOf(StartsWith("HTTP/1.1 401 "), HasSubstr("\r\nConnection: close\r\n"),
                                          EndsWith("\r\n\r\nno key")));
  }
}

TEST_F(HttpServerTest, ABodyThatIsNotReadIsNoRequestEither) {
  StartWithKeys();
  const std::string inner = "GET /inner HTTP/1.1\r\nX-Key: 1\r\n\r\n";
  {
    Client client = Connect();
    client.Write(Concat("POST /outer HTTP/1.1\r\nContent-Length: ", inner.size() + 1, "\r\n\r\n", inner));
    EXPECT_THAT(client.ReadToEnd(), AllOf(StartsWith("HTTP/1.1 401 "), EndsWith("\r\n\r\nno key")));
  }
  Client client = Connect();
  client.Write(Concat("POST /outer HTTP/1.1\r\nContent-Length: ", inner.size(),
                      "\r\nConnection: close\r\n\r\n", inner));
  EXPECT_THAT(client.ReadToEnd(), AllOf(StartsWith("HTTP/1.1 401 "), EndsWith("\r\n\r\nno key")));
  server_.reset();
  EXPECT_TRUE(calls_.empty());
}

TEST_F(HttpServerTest, BehindABodyThatCameWithARefusedHeadTheNextRequestIsRead) {
  StartWithKeys();
  Client client = Connect();
  client.Write(
      "POST /outer HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /"
      "POST /next HTTP/1.1\r\nX-Key: 1\r\nContent-Length: 3\r\n\r\nabc");
  EXPECT_THAT(client.ReadUntil("no key"), Not(HasSubstr("Connection:")));
  Call call = NextCall();
  EXPECT_EQ(call.request.path, "/next");
  EXPECT_EQ(call.request.body, "abc");
  call.responder->Send(200, "{}");
  EXPECT_THAT(client.ReadUntil("{}"), Not(HasSubstr("Connection:")));
}

TEST_F(HttpServerTest, WithoutABodyARefusedRequestMayBeFollowedByAnother) {
  StartWithKeys();
  Client client = Connect();
  client.Write(std::string(kRequest) + "POST /y HTTP/1.1\r\nX-Key: 1\r\nContent-Length: 3\r\n\r\nabc");
  EXPECT_THAT(client.ReadUntil("no key"), Not(HasSubstr("Connection:")));
  Call call = NextCall();
  EXPECT_EQ(call.request.path, "/y");
  EXPECT_EQ(call.request.body, "abc");
  call.responder->Send(200, "{}");
  EXPECT_THAT(client.ReadUntil("{}"), Not(HasSubstr("Connection:")));
}

TEST_F(HttpServerTest, AHeadThatIsNeitherHandledNorAnsweredGetsAnError) {
  const auto by_head = [](const HttpRequest& head, const std::shared_ptr<HttpResponder>&) {
    if (head.path == "/throw") throw std::runtime_error("a fault in the handler");
    return HttpHandler();
  };
  server_ = HttpServer::StartByHead({}, by_head).value();
  Client client = Connect();
  EXPECT_THAT(client.Get("/drop", "not answered\n"), StartsWith("HTTP/1.1 500 Internal Server Error\r\n"));
  EXPECT_THAT(client.Get("/throw", "not answered\n"), StartsWith("HTTP/1.1 500 Internal Server Error\r\n"));
}

std::string Post(size_t bytes) {
  return Concat("POST /p HTTP/1.1\r\nContent-Length: ", bytes, "\r\n\r\n", std::string(bytes, 'x'));
}

TEST_F(HttpServerTest, BodiesThatAreHandledShareTheMemoryOfAll) {
  HttpServerOptions options;
  options.max_buffered_body_bytes = 100'000;
  std::atomic<int> overloaded = 0;
  options.on_rejected = [&](const HttpRejection& rejection) {
    overloaded += rejection.reason == "overloaded" ? 1 : 0;
  };
  Start(options);
  Client first = Connect();
  first.Write(Post(90'000));
  std::optional<Call> held = NextCall();
  const std::string refused[] = {
      "POST /p HTTP/1.1\r\nContent-Length: 20000\r\n\r\n",  // before its body
      Concat("POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4e20\r\n", std::string(20'000, 'x'))};
  for (const std::string& request : refused) {
    Client client = Connect();
    client.Write(request);
    EXPECT_THAT(client.ReadToEnd(),
                AllOf(StartsWith("HTTP/1.1 503 "), HasSubstr("\r\nretry-after: 1\r\n"),
                      HasSubstr("\r\nConnection: close\r\n"), HasSubstr("more than 100000 bytes")));
  }
  EXPECT_EQ(overloaded, 2);
  Client second = Connect();
  second.Write(Post(5000));
  EXPECT_EQ(NextCall().request.body.size(), 5000u) << "what fits is taken";
  held.reset();
  second.ReadUntil("not answered\n");
  second.Write(Post(90'000));
  EXPECT_EQ(NextCall().request.body.size(), 90'000u) << "the memory is back";
}

TEST_F(HttpServerTest, ANewBodyDoesNotTakeTheMemoryOfOneThatIsComing) {
  HttpServerOptions options;
  options.max_buffered_body_bytes = 100'000;
  std::mutex mutex;
  std::condition_variable changed;
  size_t open = 0;
  options.on_connections = [&](size_t count) {
    std::lock_guard lock(mutex);
    open = count;
    changed.notify_all();
  };
  StartEcho(options);
  const std::string head = "POST /p HTTP/1.1\r\nContent-Length: 60000\r\nExpect: 100-continue\r\n\r\n";
  const std::string body(60'000, 'x');
  for (const bool is_finished : {true, false}) {
    Client coming = Connect();
    coming.Write(head);
    EXPECT_EQ(coming.ReadHead(), "HTTP/1.1 100 Continue\r\n\r\n");
    Client refused = Connect();
    refused.Write(head);
    EXPECT_THAT(refused.ReadToEnd(), StartsWith("HTTP/1.1 503 "));
    coming.Write(is_finished ? body : body.substr(1));
    if (is_finished) {
      EXPECT_THAT(coming.ReadUntil("~"), EndsWith(body + "~"));
    }
    coming.Close();
    refused.Close();
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return open == 0; });
  }
  Client after = Connect();
  after.Write(Post(60'000));
  EXPECT_THAT(after.ReadUntil("~"), StartsWith("HTTP/1.1 200 ")) << "the memory is back";
  server_.reset();  // it refers to what is here
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
  options.header_timeout_seconds = options.body_grace_seconds = options.idle_timeout_seconds = 0.05;
  std::mutex mutex;
  std::multiset<std::string> rejected;
  options.on_rejected = [&](const HttpRejection& rejection) {
    std::lock_guard lock(mutex);
    rejected.emplace(rejection.reason);
  };
  StartEcho(options);
  Client silent = Connect(), header = Connect(), body = Connect(), idle = Connect();
  header.Write("GET / HT");
  body.Write("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab");
  EXPECT_THAT(header.ReadToEnd(), StartsWith("HTTP/1.1 408 "));
  EXPECT_THAT(body.ReadToEnd(), StartsWith("HTTP/1.1 408 "));
  EXPECT_EQ(silent.ReadToEnd(), "");
  std::lock_guard lock(mutex);
  EXPECT_THAT(rejected, testing::UnorderedElementsAre("slow_header", "slow_body"));
}

TEST_F(HttpServerTest, ABodyThatComesFastEnoughMayTakeLong) {
  HttpServerOptions options;
  options.body_grace_seconds = 0.01;
  options.min_body_bytes_per_second = 1;  // 1000 bytes: 1000 seconds
  StartEcho(options);
  Client client = Connect();
  client.Write("POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n" + std::string(1000, 'x'));
  // While this one is timed out, the other would be, if its grace were all it has.
  Client slow = Connect();
  slow.Write("POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n");
  EXPECT_THAT(slow.ReadToEnd(), StartsWith("HTTP/1.1 408 "));
  client.Write("x");
  EXPECT_THAT(client.ReadUntil("~"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpServerTest, TellsHowManyConnectionsAreOpen) {
  HttpServerOptions options;
  std::mutex mutex;
  std::condition_variable changed;
  size_t open = 0;
  options.on_connections = [&](size_t count) {
    std::lock_guard lock(mutex);
    open = count;
    changed.notify_all();
  };
  StartEcho(options);
  const auto await = [&](size_t wanted) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return open == wanted; });
  };
  Client first = Connect();
  await(1);
  {
    Client second = Connect();
    await(2);
  }
  await(1);
  server_.reset();
  EXPECT_EQ(open, 0u);
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

TEST_F(HttpServerTest, AnAnswerIsFullWhileItsPeerDoesNotReadAndSaysWhenThereIsRoom) {
  HttpServerOptions options;
  options.stream_buffer_bytes = 10'000;
  Start(options);
  for (const bool reads_all_at_once : {true, false}) {
    Client client = Connect();
    client.Write(kRequest);
    const auto responder = NextCall().responder;
    std::promise<void> has_room;
    std::atomic<bool> had_room = false;
    responder->OnRoom([&] {
      EXPECT_FALSE(responder->is_full());
      if (!had_room.exchange(true)) has_room.set_value();
    });
    responder->StartStream(200, "text/plain");
    size_t chunks = 0;
    for (; !responder->is_full(); ++chunks) {  // ends when the sockets' buffers are full
      EXPECT_TRUE(responder->Write(std::string(1000, 'x')));
    }
    EXPECT_GE(chunks, 10u);
    EXPECT_TRUE(responder->Write(std::string(1000, 'y'))) << "what is under way still has a place";
    if (reads_all_at_once) {
      client.ReadUntil("y");
    } else {
      for (size_t i = 1; i < chunks && !had_room; ++i) client.ReadUntil("x\r\n");
    }
    has_room.get_future().get();
    responder->Finish();
    EXPECT_THAT(client.ReadUntil("\r\n0\r\n\r\n"), EndsWith("y\r\n0\r\n\r\n")) << "nothing is lost";
  }
}

TEST_F(HttpServerTest, AnAnswerThatIsRefilledWheneverItHasRoomArrivesWhole) {
  HttpServerOptions options;
  options.stream_buffer_bytes = 1000;
  Start(options);
  Client client = Connect();
  client.Write(kRequest);
  const auto responder = NextCall().responder;
  responder->StartStream(200, "text/plain");
  client.ReadHead();
  std::mutex mutex;
  size_t left = 20'000;
  const auto fill = [&] {
    std::lock_guard lock(mutex);
    while (left > 0 && !responder->is_full()) {
      responder->Write("x");
      if (--left == 0) responder->Finish();
    }
  };
  responder->OnRoom(fill);
  fill();
  const std::string stream = client.ReadUntil("\r\n0\r\n\r\n");
  EXPECT_EQ(std::ranges::count(stream, 'x'), 20'000);
}

TEST_F(HttpServerTest, APeerThatReadsNothingIsHungUpOn) {
  HttpServerOptions options;
  options.stream_buffer_bytes = 10'000;
  options.slow_reader_seconds = 0.05;
  std::promise<std::string> rejected;
  options.on_rejected = [&](const HttpRejection& rejection) {
    EXPECT_EQ(rejection.status, 0) << "the answer was the handler's";
    rejected.set_value(std::string(rejection.reason));
  };
  Start(options);
  Client client = Connect(), idle = Connect();
  client.Write(kRequest);
  const auto responder = NextCall().responder;
  responder->StartStream(200, "text/plain");
  std::promise<bool> closed;
  responder->OnClose([&] { closed.set_value(responder->is_too_slow()); });
  auto was_too_slow = closed.get_future();
  while (was_too_slow.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
    if (!responder->is_full())
      responder->Write(std::string(1000, 'x'));  // until the sockets' buffers are full
  }
  EXPECT_TRUE(was_too_slow.get());
  EXPECT_EQ(rejected.get_future().get(), "slow_reader");
  EXPECT_FALSE(responder->Write("x"));
  EXPECT_THAT(client.ReadToEnd(), Not(EndsWith("\r\n0\r\n\r\n")));
  idle.Write(kRequest);
  const auto unhurried = NextCall().responder;
  std::promise<void> gone;
  unhurried->OnClose([&] { gone.set_value(); });
  idle.Close();
  gone.get_future().get();
  EXPECT_FALSE(unhurried->is_too_slow()) << "an answer that takes long to make is not slowly read";
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

TEST_F(HttpServerTest, AnOpenStreamHoldsLittleMemory) {
  constexpr size_t kStreams = 1000,
                   kBytesEach = 4 << 10;  // the client's share, a descriptor and a string, included
  rlimit limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = limit.rlim_max;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  Start();
  std::vector<Client> clients;
  std::vector<std::shared_ptr<HttpResponder>> responders;
  size_t before = 0;
  for (size_t i = 0; i < kStreams + 100; ++i) {
    if (i == 100) before = mallinfo2().uordblks;  // what the first ones made is shared
    clients.push_back(Connect());
    clients.back().Write(Post(20'000));
    responders.push_back(NextCall().responder);
    responders.back()->StartStream(200, "text/event-stream");
    responders.back()->Write("data: x\n\n");
    clients.back().ReadUntil("data: x\n\n\r\n");
  }
  EXPECT_LT((mallinfo2().uordblks - before) / kStreams, kBytesEach);
  for (const auto& responder : responders) responder->Finish();
  for (Client& client : clients) client.ReadUntil("0\r\n\r\n");
}

TEST_F(HttpServerTest, ConnectionsPastTheLimitWait) {
  HttpServerOptions options;
  options.max_connections = 1;
  std::atomic<int> times_full = 0;
  options.on_full = [&] { ++times_full; };
  StartEcho(options);
  EXPECT_EQ(times_full, 0);
  Client first = Connect();
  EXPECT_THAT(first.Get("/1", "~"), EndsWith("/1|~"));
  Client second = Connect();
  second.Write(kRequest);
  EXPECT_THAT(first.Get("/2", "~"), EndsWith("/2|~"));
  first.Close();
  EXPECT_THAT(second.ReadUntil("~"), EndsWith("/x|~"));
  EXPECT_GE(times_full, 1) << "with the first connection, and perhaps with the second";
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

// A server with a certificate of `ours`.
class HttpsServerTest : public HttpServerTest {
 protected:
  HttpsServerTest() { std::signal(SIGPIPE, SIG_IGN); }  // OpenSSL's own sockets, on the client's side
  static std::string Folder() {
    const std::string folder =
        testing::TempDir() + "/" + testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder);
    return folder;
  }
  HttpServerOptions Options(const TlsFiles& files) {
    tls_ = TlsSource::Open(files, {.use = "listen", .metrics = nullptr, .period_seconds = 1e6}).value();
    HttpServerOptions options;
    options.tls = tls_;
    return options;
  }

  const std::string folder_ = Folder();
  TestAuthority ours_{folder_, "ours"}, theirs_{folder_, "theirs"};
  const TlsFiles client_ = {.ca = ours_.ca_path()};
  std::shared_ptr<TlsSource> tls_;
};

TEST_F(HttpsServerTest, AnswersOverTls) {
  StartEcho(Options(ours_.Issue("server")));
  Client client = Connect();
  ASSERT_TRUE(client.StartTls(client_));
  EXPECT_THAT(client.Get("/1", "~"), EndsWith("/1|~"));
  const std::string body(300'000, 'x');  // many records each way
  client.Write(Concat("POST /2 HTTP/1.1\r\nContent-Length: ", body.size(), "\r\n\r\n", body));
  EXPECT_THAT(client.ReadUntil("~"), EndsWith("/2|" + body + "~"));
  client.Write("GET /3 HTTP/1.1\r\n\r\nGET /4 HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("~"), EndsWith("/3|~"));
  EXPECT_THAT(client.ReadToEnd(), EndsWith("/4|~"));
}

TEST_F(HttpsServerTest, StreamsAndNoticesThatThePeerIsGone) {
  Start(Options(ours_.Issue("server")));
  Client client = Connect();
  ASSERT_TRUE(client.StartTls(client_));
  client.Write(kRequest);
  const auto responder = NextCall().responder;
  responder->StartStream(200, "text/plain");
  client.ReadHead();
  responder->Write("x");
  EXPECT_EQ(client.ReadUntil("x\r\n"), "1\r\nx\r\n");
  std::promise<void> gone;
  responder->OnClose([&] { gone.set_value(); });
  client.Close();
  gone.get_future().get();
}

TEST_F(HttpsServerTest, PlainTextIsHungUpOn) {
  StartEcho(Options(ours_.Issue("server")));
  Client plain = Connect();
  plain.Write(kRequest);
  EXPECT_THAT(plain.ReadToEnd(), Not(HasSubstr("HTTP")));
  Client client = Connect();
  ASSERT_TRUE(client.StartTls(client_));
  EXPECT_THAT(client.Get("/1", "~"), EndsWith("/1|~"));
}

TEST_F(HttpsServerTest, SpeaksNothingButHttp11) {
  StartEcho(Options(ours_.Issue("server")));
  Client http11 = Connect(), http2 = Connect();
  ASSERT_TRUE(http11.StartTls(client_, "\x02h2\x08http/1.1"));
  EXPECT_EQ(http11.alpn(), "http/1.1");
  EXPECT_FALSE(http2.StartTls(client_, "\x02h2"));
}

TEST_F(HttpsServerTest, WithAuthoritiesAClientNeedsACertificateOfThem) {
  TlsFiles server = ours_.Issue("server");
  server.ca = ours_.ca_path();
  StartEcho(Options(server));
  const auto get = [this](TlsFiles files) {
    files.ca = ours_.ca_path();
    Client client = Connect();
    client.StartTls(files);  // TLS 1.3: the server judges afterwards
    return client.Get("/1", "~");
  };
  EXPECT_THAT(get(ours_.Issue("friend")), EndsWith("/1|~"));
  EXPECT_EQ(get({}), "");
  EXPECT_EQ(get(theirs_.Issue("stranger")), "");
}

TEST_F(HttpsServerTest, NewConnectionsUseTheNewCertificateAndOldOnesGoOn) {
  StartEcho(Options(ours_.Issue("server")));
  Client old = Connect();
  ASSERT_TRUE(old.StartTls(client_));
  theirs_.Issue("server");
  tls_->Refresh();
  EXPECT_THAT(old.Get("/old", "~"), EndsWith("/old|~"));
  EXPECT_FALSE(Connect().StartTls(client_));
  Client fresh = Connect();
  ASSERT_TRUE(fresh.StartTls({.ca = theirs_.ca_path()}));
  EXPECT_THAT(fresh.Get("/new", "~"), EndsWith("/new|~"));
}

TEST_F(HttpsServerTest, ASlowHandshakeTimesOut) {
  HttpServerOptions options = Options(ours_.Issue("server"));
  options.header_timeout_seconds = 0.05;
  StartEcho(options);
  EXPECT_EQ(Connect().ReadToEnd(), "");
  Client half = Connect();
  half.Write(std::string("\x16\x03\x01\x02", 4));  // the first bytes of a ClientHello
  EXPECT_EQ(half.ReadToEnd(), "");
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

TEST(HostPort, KnowsWhatOnlyThisMachineCanReach) {
  for (const char* text : {"127.0.0.1:1", "127.1.2.3:1", "localhost:1", "[::1]:1"}) {
    EXPECT_TRUE(ParseHostPort(text)->is_loopback()) << text;
  }
  for (const char* text : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "128.0.0.1:1", "[fe80::1]:1", "example.org:1",
                           "127.example.org:1"}) {
    EXPECT_FALSE(ParseHostPort(text)->is_loopback()) << text;
  }
}

}  // namespace
}  // namespace terrace
