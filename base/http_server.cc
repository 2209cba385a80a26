#include "base/http_server.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "base/host_port.h"
#include "base/http_answer.h"
#include "base/http_head.h"
#include "base/log.h"
#include "base/socket_stream.h"
#include "base/tls.h"

namespace terrace {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr size_t kReadBytes = 16 << 10;          // one buffer a thread: a connection has none while it waits
constexpr double kBodyPauseSeconds = 30;         // at most, between two pieces of a body
constexpr size_t kMaxPipelinedBytes = 64 << 10;  // read ahead while an answer is made; then the peer waits
constexpr double kLingerSeconds = 1;
constexpr double kAcceptRetrySeconds = 0.1;  // after an error such as "too many open files"

std::chrono::nanoseconds ToDuration(double seconds) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(std::clamp(seconds, 0.0, 1e8)));
}

std::string ToText(const tcp::endpoint& endpoint) {
  return HostPort{.host = endpoint.address().to_string(), .port = endpoint.port()}.ToString();
}

std::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

// Without the body.
HttpRequest ToRequest(const http::request<http::string_body>& message, const std::string& peer) {
  HttpRequest request;
  const std::string_view target = View(message.target());
  const size_t question = target.find('?');
  request.method = View(message.method_string());
  request.path = target.substr(0, question);
  if (question != std::string_view::npos) request.query = target.substr(question + 1);
  for (const auto& field : message) {
    std::string name(View(field.name_string()));
    std::transform(name.begin(), name.end(), name.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
    const auto [header, is_new] = request.headers.try_emplace(std::move(name), View(field.value()));
    if (!is_new) header->second.append(", ").append(View(field.value()));
  }
  request.peer = peer;
  return request;
}

class Connection;

// What a connection needs of its server, which outlives it.
class ConnectionOwner {
 public:
  virtual ~ConnectionOwner() = default;
  virtual const HttpServerOptions& options() const = 0;
  virtual void Handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) = 0;
  virtual void Forget(const std::shared_ptr<Connection>& connection) = 0;
};

// One client. Everything runs on the strand of its socket. It always waits for what comes, so that a peer
// that goes away is noticed while an answer is made; what it reads is fed to the parser, or kept until the
// answer is out.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(ConnectionOwner& owner, tcp::socket socket, std::string peer)
      : owner_(owner),
        stream_(std::move(socket),
                owner.options().tls == nullptr ? nullptr : owner.options().tls->Current()->server_context),
        timer_(stream_.socket().get_executor()),
        peer_(std::move(peer)) {}

  // The three calls from other threads.
  void Start() { Post(&Connection::Begin); }
  void Drain() { Post(&Connection::EndWhenAnswered); }
  void Abandon() { Post(&Connection::Close); }

 private:
  enum class State { kHandshake, kIdle, kHeader, kBody, kAnswering, kLingering, kClosed };
  using Parser = http::request_parser<http::string_body>;

  void Post(void (Connection::*step)()) {
    asio::post(stream_.socket().get_executor(), [self = shared_from_this(), step] { ((*self).*step)(); });
  }

  void Begin() {
    error_code ignored;
    stream_.socket().set_option(tcp::no_delay(true), ignored);
    SetTimer(owner_.options().header_timeout_seconds);  // for the handshake and the first byte behind it
    if (stream_.is_tls()) return Handshake();
    AwaitRequest();
  }

  void Handshake() {
    if (state_ != State::kHandshake) return;
    const SocketStream::Step step = stream_.Handshake();
    if (step.is_over) return Reject("tls_handshake");
    if (step.bytes > 0) return AwaitRequest();
    stream_.socket().async_wait(step.wait, [self = shared_from_this()](error_code) { self->Handshake(); });
  }

  // The timer is set.
  void AwaitRequest() {
    state_ = State::kIdle;
    answer_.reset();
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(owner_.options().max_header_bytes));
    parser_->body_limit(owner_.options().max_body_bytes);
    const HttpServerOptions& options = owner_.options();
    head_.emplace(HttpHeadCheck::Limits{.max_bytes = options.max_header_bytes,
                                        .max_target_bytes = options.max_target_bytes,
                                        .max_fields = options.max_headers});
    body_bytes_ = body_bytes_seen_ = 0;
    Parse();
    Read();
  }

  void Read() {
    const bool has_room = state_ != State::kAnswering || input_.size() < kMaxPipelinedBytes;
    if (reading_ || !has_room || state_ == State::kClosed) return;
    reading_ = true;
    if (stream_.has_unread()) return Post(&Connection::OnReadable);
    stream_.socket().async_wait(read_wait_, [self = shared_from_this()](error_code) { self->OnReadable(); });
  }

  void OnReadable() {
    reading_ = false;
    if (state_ == State::kClosed) return;
    static thread_local std::array<char, kReadBytes> buffer;
    const SocketStream::Step step = stream_.Read(buffer);
    if (step.is_over) return Close();
    read_wait_ = step.wait;
    if (step.bytes == 0) return Read();
    if (state_ != State::kLingering) input_.append(buffer.data(), step.bytes);
    Parse();
    Read();
  }

  void Parse() {
    if (state_ == State::kIdle && !input_.empty()) {
      state_ = State::kHeader;
      SetTimer(owner_.options().header_timeout_seconds);
    }
    if (state_ == State::kHeader) {
      if (const auto refusal = head_->Check(input_)) return Fail(*refusal);
      if (!head_->is_complete()) return;  // the parser sees whole heads only
    }
    while (!input_.empty() && (state_ == State::kHeader || state_ == State::kBody)) {
      error_code error;
      const size_t used = parser_->put(asio::buffer(input_), error);
      input_.erase(0, used);
      if (error == http::error::need_more) error = {};
      if (error) return Fail(error);
      if (state_ == State::kBody) body_bytes_ += used;
      if (IsFramingTooLarge())
        return Fail({413, "chunk_overhead", "the framing of the chunks is too large for what they carry"});
      if (state_ == State::kHeader && parser_->is_header_done() && !OnHeader()) return;
      if (parser_->is_done()) return Dispatch();
      if (used > 0) continue;
      // The parser waits for the end of a chunk's line.
      if (input_.size() > owner_.options().max_header_bytes) Fail(http::error::header_limit);
      return;
    }
  }

  // Chunks of a few bytes must not cost many times what they carry.
  bool IsFramingTooLarge() const {
    if (state_ != State::kBody || !parser_->chunked()) return false;
    return body_bytes_ > kMaxPipelinedBytes + 3 * parser_->get().body().size();
  }

  // False when the request has been refused.
  bool OnHeader() {
    const auto& message = parser_->get();
    answer_ = MakeAnswer(message.version() == 11, message.keep_alive(), message.method() == http::verb::head);
    if (const auto refusal = CheckHeader(message)) {
      Fail(*refusal);
      return false;
    }
    request_ = ToRequest(message, peer_);  // now: what is behind the body must not look like a header
    state_ = State::kBody;
    body_begin_ = std::chrono::steady_clock::now();
    SetTimer(owner_.options().body_grace_seconds);
    const bool is_asked = message.count(http::field::expect) > 0;
    if (is_asked && !parser_->is_done() && input_.empty()) answer_->Continue();
    return true;
  }

  static std::optional<HttpRefusal> CheckHeader(const http::request<http::string_body>& message) {
    if (message.method() == http::verb::connect || message.method() == http::verb::trace) {
      return HttpRefusal{405, "method", Concat("there is no ", View(message.method_string()), " here")};
    }
    const size_t encodings = message.count(http::field::transfer_encoding);
    const auto encoding = message[http::field::transfer_encoding];
    if (encodings > 1 || (encodings == 1 && !boost::beast::iequals(encoding, "chunked"))) {
      return HttpRefusal{400, "transfer_encoding", "the only transfer encoding is chunked"};
    }
    const auto expect = message[http::field::expect];
    if (!expect.empty() && !boost::beast::iequals(expect, "100-continue")) {
      return HttpRefusal{417, "expectation", "the only expectation is 100-continue"};
    }
    return std::nullopt;
  }

  void Fail(error_code error) {
    if (error == http::error::header_limit) {
      return Fail({431, "header_too_large",
                   Concat("the header is larger than ", owner_.options().max_header_bytes, " bytes")});
    }
    if (error == http::error::body_limit) {
      return Fail({413, "body_too_large",
                   Concat("the body is larger than ", owner_.options().max_body_bytes, " bytes")});
    }
    Fail({400, "malformed", Concat("malformed HTTP: ", error.message())});
  }

  // Answers a request that will not be handled, and hangs up: what follows on the wire cannot be trusted.
  void Fail(const HttpRefusal& refusal) {
    Count(refusal.reason);
    if (!answer_) answer_ = MakeAnswer(true, false, false);
    answer_->EndKeepAlive();
    BeginAnswer();
    answer_->SendError(refusal.status, refusal.message,
                       refusal.status == 405 ? HttpHeaders{{"allow", "GET, HEAD, POST"}} : HttpHeaders());
  }

  void Reject(std::string_view reason) {
    Count(reason);
    Close();
  }

  void Count(std::string_view reason) const {
    if (owner_.options().on_rejected) owner_.options().on_rejected(reason);
  }

  void Dispatch() {
    HttpRequest request = std::move(request_);
    request.body = std::move(parser_->get().body());
    BeginAnswer();
    owner_.Handle(std::move(request), MakeResponder(answer_));
  }

  void BeginAnswer() {
    state_ = State::kAnswering;
    StopTimer();
    parser_.reset();
    head_.reset();
    request_ = {};
    if (input_.empty()) input_ = {};  // with its memory
  }

  std::shared_ptr<HttpAnswer> MakeAnswer(bool is_http_1_1, bool keep_alive, bool is_head) {
    HttpAnswerOptions options = {.keep_alive = keep_alive,
                                 .is_http_1_1 = is_http_1_1,
                                 .is_head = is_head,
                                 .buffer_bytes = owner_.options().stream_buffer_bytes,
                                 .error_body = owner_.options().error_body,
                                 .error_headers = owner_.options().error_headers};
    return std::make_shared<HttpAnswer>(std::move(options), [weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->Post(&Connection::Flush);
    });
  }

  void Flush() {
    if (writing_ || !answer_) return;
    HttpAnswer::Taken taken = answer_->Take();
    if (taken.bytes.empty() && !taken.is_last) return;
    ends_ = taken.is_last;
    aborts_ = taken.is_aborted;
    output_ = std::move(taken.bytes);
    written_ = 0;
    WriteOn();
  }

  void WriteOn() {
    while (written_ < output_.size()) {
      const SocketStream::Step step = stream_.Write(std::string_view(output_).substr(written_));
      if (step.is_over) return Close();
      if (step.bytes == 0) return AwaitWritable(step.wait);
      written_ += step.bytes;
      answer_->Sent(step.bytes);
    }
    output_ = {};
    if (aborts_) return Close();
    if (ends_) return EndAnswer();
    if (state_ == State::kAnswering) StopTimer();
    Flush();  // what was added meanwhile
  }

  void AwaitWritable(tcp::socket::wait_type wait) {
    writing_ = true;
    if (state_ == State::kAnswering) SetTimer(owner_.options().slow_reader_seconds);
    stream_.socket().async_wait(wait, [self = shared_from_this()](error_code) {
      self->writing_ = false;
      if (self->state_ != State::kClosed) self->WriteOn();
    });
  }

  void EndAnswer() {
    ends_ = false;
    if (answer_->keep_alive()) {
      SetTimer(owner_.options().idle_timeout_seconds);
      return AwaitRequest();
    }
    // A close with unread input resets the connection, which can take the answer away from the peer before it
    // has read it: say that nothing more comes, then swallow what the peer still sends, for a moment.
    answer_.reset();
    input_.clear();
    state_ = State::kLingering;
    SetTimer(kLingerSeconds);
    stream_.EndSending();
    Read();
  }

  void EndWhenAnswered() {
    if (state_ == State::kAnswering) return answer_->EndKeepAlive();
    if (state_ != State::kLingering) Close();
  }

  void SetTimer(double seconds) {
    timer_.expires_after(ToDuration(seconds));
    timer_.async_wait([self = shared_from_this()](error_code error) {
      // A wait that was over before the timer was set anew arrives without an error: the expiry tells.
      if (!error && self->timer_.expiry() <= std::chrono::steady_clock::now()) self->OnTimer();
    });
  }

  void StopTimer() { timer_.expires_at(std::chrono::steady_clock::time_point::max()); }

  void OnTimer() {
    switch (state_) {
      case State::kHandshake:
        return Reject("tls_handshake");
      case State::kHeader:
        return Fail({408, "slow_header", "the header did not arrive in time"});
      case State::kBody:
        return OnBodyTimer();
      case State::kAnswering:
        answer_->SetTooSlow();
        return Reject("slow_reader");
      default:
        return Close();  // idle for too long
    }
  }

  // The timer is not set anew with each piece of the body: what came since is looked at when it is over.
  void OnBodyTimer() {
    const HttpServerOptions& options = owner_.options();
    const double allowed = std::max(options.body_grace_seconds,
                                    static_cast<double>(body_bytes_) / options.min_body_bytes_per_second);
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - body_begin_;
    // What came fast may not be followed by nothing for ever.
    const bool is_moving = std::exchange(body_bytes_seen_, body_bytes_) != body_bytes_;
    const bool has_paused = passed.count() >= kBodyPauseSeconds && !is_moving;
    if (passed.count() < allowed && !has_paused) {
      return SetTimer(std::min(allowed - passed.count(), kBodyPauseSeconds));
    }
    Fail({408, "slow_body", "the body did not arrive in time"});
  }

  void Close() {
    if (std::exchange(state_, State::kClosed) == State::kClosed) return;
    StopTimer();
    stream_.Close();
    if (answer_) answer_->Close();
    answer_.reset();
    owner_.Forget(shared_from_this());
  }

  ConnectionOwner& owner_;
  SocketStream stream_;
  asio::steady_timer timer_;  // the one deadline of the current state
  const std::string peer_;
  State state_ = State::kHandshake;
  std::optional<HttpHeadCheck> head_;  // these two until the answer begins
  std::optional<Parser> parser_;
  HttpRequest request_;                 // without its body
  std::shared_ptr<HttpAnswer> answer_;  // from the end of a request's header to the end of its answer
  tcp::socket::wait_type read_wait_ = tcp::socket::wait_read;
  std::string input_;           // read, not parsed
  size_t body_bytes_ = 0;       // so far, with its framing
  size_t body_bytes_seen_ = 0;  // when the timer was set last
  std::chrono::steady_clock::time_point body_begin_;
  std::string output_;  // being sent
  size_t written_ = 0;  // of output_
  bool reading_ = false, writing_ = false;
  bool ends_ = false, aborts_ = false;  // what to do after output_
};

class BeastServer final : public HttpServer, public ConnectionOwner {
 public:
  BeastServer(HttpServerOptions options, HttpHandler handler)
      : options_(std::move(options)),
        handler_(std::move(handler)),
        io_(static_cast<int>(std::max<size_t>(options_.threads, 1))),
        work_(io_.get_executor()),
        acceptor_(asio::make_strand(io_)),
        accept_timer_(acceptor_.get_executor()) {}
  ~BeastServer() override { Stop(0); }

  Status Listen() {
    ASSIGN_OR_RETURN(const HostPort wanted, ParseHostPort(options_.address));
    error_code error;
    const auto found =
        tcp::resolver(io_).resolve(wanted.host, std::to_string(wanted.port), tcp::resolver::passive, error);
    if (error) return Unavailable(options_.address, ": ", error.message());
    for (const auto& entry : found) {
      error = ListenOn(entry.endpoint());
      if (!error) break;
    }
    if (error) return Unavailable(options_.address, ": ", error.message());
    address_ = ToText(acceptor_.local_endpoint(error));
    asio::post(acceptor_.get_executor(), [this] { Accept(); });
    for (size_t i = 0; i < std::max<size_t>(options_.threads, 1); ++i)
      threads_.emplace_back([this] { Work(); });
    return absl::OkStatus();
  }

  std::string address() const override { return address_; }

  void Stop(double grace_seconds) override {
    asio::post(acceptor_.get_executor(), [this] {
      error_code ignored;
      accept_timer_.cancel();
      acceptor_.close(ignored);
    });
    {
      std::unique_lock lock(mutex_);
      stopping_ = true;
      for (const auto& connection : connections_) connection->Drain();
      changed_.wait_for(lock, ToDuration(grace_seconds), [this] { return connections_.empty(); });
      for (const auto& connection : connections_) connection->Abandon();
    }
    work_.reset();
    threads_.clear();  // joins: the last connection's last handler ends the io loop
  }

 private:
  const HttpServerOptions& options() const override { return options_; }

  void Handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) override try {
    handler_(std::move(request), std::move(responder));
  } catch (const std::exception& error) {  // the dropped responder answers 500
    Log(LogLevel::kError, "http_handler_exception", {{"what", error.what()}});
  }

  void Forget(const std::shared_ptr<Connection>& connection) override {
    std::lock_guard lock(mutex_);
    connections_.erase(connection);
    TellConnections();
    changed_.notify_all();
    if (std::exchange(full_, false)) asio::post(acceptor_.get_executor(), [this] { Accept(); });
  }

  // With the lock.
  void TellConnections() const {
    if (options_.on_connections) options_.on_connections(connections_.size());
  }

  error_code ListenOn(const tcp::endpoint& endpoint) {
    error_code error, ignored;
    acceptor_.close(ignored);
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(tcp::acceptor::max_listen_connections, error);
    return error;
  }

  void Accept() {
    {
      std::lock_guard lock(mutex_);
      full_ = connections_.size() >= options_.max_connections;
      if (full_ || stopping_) return;
    }
    acceptor_.async_accept(asio::make_strand(io_), [this](error_code error, tcp::socket socket) {
      OnAccept(error, std::move(socket));
    });
  }

  void OnAccept(error_code error, tcp::socket socket) {
    if (error == asio::error::operation_aborted) return;
    if (error && error != asio::error::connection_aborted) {
      if (!std::exchange(is_accept_failing_, true)) {
        Log(LogLevel::kWarn, "http_accept_failed", {{"address", address_}, {"error", error.message()}});
      }
      accept_timer_.expires_after(ToDuration(kAcceptRetrySeconds));
      return accept_timer_.async_wait([this](error_code cancelled) {
        if (!cancelled) Accept();
      });
    }
    is_accept_failing_ = false;
    error_code unknown;
    const tcp::endpoint peer = error ? tcp::endpoint() : socket.remote_endpoint(unknown);
    if (!error && !unknown) {
      const auto connection = std::make_shared<Connection>(*this, std::move(socket), ToText(peer));
      std::lock_guard lock(mutex_);
      if (stopping_) return;
      connections_.insert(connection);
      TellConnections();
      connection->Start();
    }
    Accept();
  }

  void Work() {
    while (true) {
      try {
        io_.run();
        return;
      } catch (
          const std::exception& error) {  // out of memory, at worst: one connection suffers, the others go on
        Log(LogLevel::kError, "http_exception", {{"what", error.what()}});
      }
    }
  }

  const HttpServerOptions options_;
  const HttpHandler handler_;
  std::string address_;
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  tcp::acceptor acceptor_;
  asio::steady_timer accept_timer_;
  bool is_accept_failing_ = false;  // the acceptor's strand
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::shared_ptr<Connection>> connections_;  // GUARDED_BY(mutex_)
  bool full_ = false;                                  // GUARDED_BY(mutex_): not accepting
  bool stopping_ = false;                              // GUARDED_BY(mutex_)
  std::vector<std::jthread> threads_;                  // last: joined before what they use dies
};

}  // namespace

StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpServerOptions options, HttpHandler handler) {
  auto server = std::make_unique<BeastServer>(std::move(options), std::move(handler));
  RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace terrace
