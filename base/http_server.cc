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
#include "base/log.h"

namespace terrace {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr size_t kReadBytes = 8 << 10;
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

HttpRequest ToRequest(http::request<http::string_body> message, std::string peer) {
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
    request.headers[std::move(name)] = View(field.value());
  }
  request.body = std::move(message.body());
  request.peer = std::move(peer);
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

// One client. Everything runs on the strand of its socket. One read is always outstanding, so that a peer
// that goes away is noticed while an answer is made; what it reads is fed to the parser, or kept until the
// answer is out.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(ConnectionOwner& owner, tcp::socket socket, std::string peer)
      : owner_(owner), socket_(std::move(socket)), timer_(socket_.get_executor()), peer_(std::move(peer)) {}

  // The three calls from other threads.
  void Start() { Post(&Connection::Begin); }
  void Drain() { Post(&Connection::EndWhenAnswered); }
  void Abandon() { Post(&Connection::Close); }

 private:
  enum class State { kIdle, kHeader, kBody, kAnswering, kLingering, kClosed };
  using Parser = http::request_parser<http::string_body>;

  void Post(void (Connection::*step)()) {
    asio::post(socket_.get_executor(), [self = shared_from_this(), step] { ((*self).*step)(); });
  }

  void Begin() {
    error_code ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    AwaitRequest(owner_.options().header_timeout_seconds);
  }

  void AwaitRequest(double timeout_seconds) {
    state_ = State::kIdle;
    answer_.reset();
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(owner_.options().max_header_bytes));
    parser_->body_limit(owner_.options().max_body_bytes);
    chunked_bytes_ = 0;
    SetTimer(timeout_seconds);
    Parse();
    Read();
  }

  void Read() {
    const bool has_room = state_ != State::kAnswering || input_.size() < kMaxPipelinedBytes;
    if (reading_ || !has_room || state_ == State::kClosed) return;
    reading_ = true;
    socket_.async_read_some(asio::buffer(read_buffer_),
                            [self = shared_from_this()](error_code error, size_t bytes) {
                              self->reading_ = false;
                              self->OnRead(error, bytes);
                            });
  }

  void OnRead(error_code error, size_t bytes) {
    if (error) return Close();
    if (state_ != State::kLingering) input_.append(read_buffer_.data(), bytes);
    Parse();
    Read();
  }

  void Parse() {
    while (!input_.empty() &&
           (state_ == State::kIdle || state_ == State::kHeader || state_ == State::kBody)) {
      if (state_ == State::kIdle) {
        state_ = State::kHeader;
        SetTimer(owner_.options().header_timeout_seconds);
      }
      error_code error;
      const size_t used = parser_->put(asio::buffer(input_), error);
      input_.erase(0, used);
      if (error == http::error::need_more) error = {};
      if (error) return Fail(error);
      if (state_ == State::kBody && parser_->chunked()) chunked_bytes_ += used;
      // Chunks of a few bytes must not cost many times what they carry.
      if (chunked_bytes_ > 2 * owner_.options().max_body_bytes + kMaxPipelinedBytes)
        return Fail(413, "the body is too large");
      if (state_ == State::kHeader && parser_->is_header_done() && !OnHeader()) return;
      if (parser_->is_done()) return Dispatch();
      if (used > 0) continue;
      // The parser waits for the end of a line: of a header, which it limits itself, or of a chunk's.
      if (input_.size() > owner_.options().max_header_bytes) Fail(http::error::header_limit);
      return;
    }
  }

  // False when the request has been refused.
  bool OnHeader() {
    const auto& message = parser_->get();
    answer_ = MakeAnswer(message.version() == 11, message.keep_alive(), message.method() == http::verb::head);
    const bool is_encoded = message.count(http::field::transfer_encoding) > 0;
    if (is_encoded && !(message.count(http::field::transfer_encoding) == 1 &&
                        boost::beast::iequals(message[http::field::transfer_encoding], "chunked"))) {
      Fail(400, "the only transfer encoding is chunked");
      return false;
    }
    const auto expect = message[http::field::expect];
    if (!expect.empty() && !boost::beast::iequals(expect, "100-continue")) {
      Fail(417, "the only expectation is 100-continue");
      return false;
    }
    state_ = State::kBody;
    SetTimer(owner_.options().body_timeout_seconds);
    if (!expect.empty() && !parser_->is_done() && input_.empty()) answer_->Continue();
    return true;
  }

  void Fail(error_code error) {
    if (error == http::error::header_limit) {
      return Fail(431, Concat("the header is larger than ", owner_.options().max_header_bytes, " bytes"));
    }
    if (error == http::error::body_limit) {
      return Fail(413, Concat("the body is larger than ", owner_.options().max_body_bytes, " bytes"));
    }
    Fail(400, Concat("malformed HTTP: ", error.message()));
  }

  // Answers a request that will not be handled, and hangs up: what follows on the wire cannot be trusted.
  void Fail(int status, std::string_view message) {
    if (!answer_) answer_ = MakeAnswer(true, false, false);
    answer_->EndKeepAlive();
    BeginAnswer();
    answer_->SendError(status, message);
  }

  void Dispatch() {
    HttpRequest request = ToRequest(parser_->release(), peer_);
    BeginAnswer();
    owner_.Handle(std::move(request), MakeResponder(answer_));
  }

  void BeginAnswer() {
    state_ = State::kAnswering;
    StopTimer();
    parser_.reset();
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
    if (answer_ && answer_->is_hopeless()) return Close();
    if (writing_ || !answer_) return;
    HttpAnswer::Taken taken = answer_->Take();
    ends_ = taken.is_last;
    aborts_ = taken.is_aborted;
    output_ = std::move(taken.bytes);
    written_ = 0;
    WriteOn();
  }

  void WriteOn() {
    if (written_ == output_.size()) {
      output_.clear();
      if (aborts_) return Close();
      if (ends_) return EndAnswer();
      if (state_ == State::kAnswering) StopTimer();
      return;
    }
    writing_ = true;
    if (state_ == State::kAnswering) SetTimer(owner_.options().body_timeout_seconds);
    socket_.async_write_some(asio::buffer(output_.data() + written_, output_.size() - written_),
                             [self = shared_from_this()](error_code error, size_t bytes) {
                               self->writing_ = false;
                               self->OnWritten(error, bytes);
                             });
  }

  void OnWritten(error_code error, size_t bytes) {
    if (error || state_ == State::kClosed) return Close();
    answer_->Sent(bytes);
    written_ += bytes;
    if (written_ < output_.size() || ends_) return WriteOn();
    Flush();
  }

  void EndAnswer() {
    ends_ = false;
    if (answer_->keep_alive()) return AwaitRequest(owner_.options().idle_timeout_seconds);
    // A close with unread input resets the connection, which can take the answer away from the peer before it
    // has read it: say that nothing more comes, then swallow what the peer still sends, for a moment.
    answer_.reset();
    input_.clear();
    state_ = State::kLingering;
    SetTimer(kLingerSeconds);
    error_code ignored;
    socket_.shutdown(tcp::socket::shutdown_send, ignored);
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
    if (state_ == State::kHeader || state_ == State::kBody)
      return Fail(408, "the request did not arrive in time");
    Close();  // idle for too long, or a peer that does not read
  }

  void Close() {
    if (std::exchange(state_, State::kClosed) == State::kClosed) return;
    error_code ignored;
    StopTimer();
    socket_.shutdown(tcp::socket::shutdown_both, ignored);
    socket_.close(ignored);
    if (answer_) answer_->Close();
    answer_.reset();
    owner_.Forget(shared_from_this());
  }

  ConnectionOwner& owner_;
  tcp::socket socket_;
  asio::steady_timer timer_;  // the one deadline of the current state
  const std::string peer_;
  State state_ = State::kIdle;
  std::optional<Parser> parser_;
  std::shared_ptr<HttpAnswer> answer_;  // from the end of a request's header to the end of its answer
  std::array<char, kReadBytes> read_buffer_;
  std::string input_;         // read, not parsed
  size_t chunked_bytes_ = 0;  // of the body so far, with its framing
  std::string output_;        // being sent
  size_t written_ = 0;        // of output_
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
    changed_.notify_all();
    if (std::exchange(full_, false)) asio::post(acceptor_.get_executor(), [this] { Accept(); });
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
      Log(LogLevel::kWarn, "http_accept_failed", {{"address", address_}, {"error", error.message()}});
      accept_timer_.expires_after(ToDuration(kAcceptRetrySeconds));
      return accept_timer_.async_wait([this](error_code cancelled) {
        if (!cancelled) Accept();
      });
    }
    error_code unknown;
    const tcp::endpoint peer = error ? tcp::endpoint() : socket.remote_endpoint(unknown);
    if (!error && !unknown) {
      const auto connection = std::make_shared<Connection>(*this, std::move(socket), ToText(peer));
      std::lock_guard lock(mutex_);
      if (stopping_) return;
      connections_.insert(connection);
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
