#include "base/http_connection.h"

#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/parser.hpp>

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <tuple>
#include <utility>

#include "base/http_answer.h"
#include "base/http_body.h"
#include "base/http_head.h"
#include "base/http_input.h"
#include "base/tls.h"

namespace terrace {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using Socket = SocketStream::Socket;
using Timer =
    asio::basic_waitable_timer<std::chrono::steady_clock, asio::wait_traits<std::chrono::steady_clock>,
                               SocketStream::Executor>;
using boost::system::error_code;

constexpr size_t kReadBytes = 16 << 10;     // one buffer a thread: a connection has none while it waits
constexpr size_t kMaxAheadBytes = 4 << 10;  // read while an answer is made, to see the peer go; more waits
// The memory that a body is going to need, up to this, is taken with its head; more when it comes. So it is
// new requests that are refused when there is no more, and heads alone do not take it all.
constexpr size_t kFirstBodyBytes = 64 << 10;
constexpr size_t kFreeFramingBytes = 64 << 10;  // of a chunked body, whatever it carries
constexpr double kBodyPauseSeconds = 30;        // at most, between two pieces of a body
constexpr double kLingerSeconds = 1;

std::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

using Parser = http::request_parser<HttpBodyReading>;
using ParsedRequest = Parser::value_type;

// Without the body.
HttpRequest ToRequest(const ParsedRequest& message, const std::string& peer) {
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

// What a refusal says besides its message.
HttpHeaders HeadersOf(const HttpRefusal& refusal) {
  if (refusal.status == 405) return HttpHeaders{{"allow", "GET, HEAD, POST"}};
  if (refusal.status == 503) return HttpHeaders{{"retry-after", "1"}};
  return {};
}

// A request while it is read: from its first byte until its answer begins.
struct IncomingRequest {
  explicit IncomingRequest(const HttpServerOptions& options)
      : head(HttpHeadCheck::Limits{.max_bytes = options.max_header_bytes,
                                   .max_target_bytes = options.max_target_bytes,
                                   .max_fields = options.max_headers,
                                   .max_field_bytes = options.max_field_bytes}) {
    parser.header_limit(static_cast<uint32_t>(options.max_header_bytes));
    parser.body_limit(options.max_body_bytes);
  }

  HttpHeadCheck head;
  Parser parser;
  // From the end of the head on.
  HttpRequest request;  // without its body
  HttpHandler handler;
  std::shared_ptr<HttpResponder> responder;
  bool keeps_alive = false;    // the connection, as its head has it
  size_t body_bytes = 0;       // so far, with its framing
  size_t body_bytes_seen = 0;  // when the timer was set last
  std::chrono::steady_clock::time_point body_begin;
};

// One client. Everything runs on the strand of its socket. It always waits for what comes, so that a peer
// that goes away is noticed while an answer is made; what it reads is fed to the parser, or kept until the
// answer is out. While one is made, which may take minutes, nothing of its request is left here.
class ClientConnection final : public HttpConnection, public std::enable_shared_from_this<ClientConnection> {
 public:
  ClientConnection(HttpConnectionOwner& owner, Socket socket, std::string peer)
      : owner_(owner),
        stream_(std::move(socket),
                owner.options().tls == nullptr ? nullptr : owner.options().tls->Current()->server_context),
        timer_(stream_.socket().get_executor()),
        peer_(std::move(peer)) {}

  void Start() override { Post(&ClientConnection::Begin); }
  void Drain() override { Post(&ClientConnection::EndWhenAnswered); }
  void Abandon() override { Post(&ClientConnection::Close); }

 private:
  enum class State { kHandshake, kIdle, kHeader, kBody, kAnswering, kLingering, kClosed };

  void Post(void (ClientConnection::*step)()) {
    asio::post(stream_.socket().get_executor(), [self = shared_from_this(), step] { ((*self).*step)(); });
  }

  void Begin() {
    error_code ignored;
    stream_.socket().set_option(asio::ip::tcp::no_delay(true), ignored);
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
    Parse();
    Read();
  }

  // Bytes that may be read now.
  size_t Room() const {
    if (state_ == State::kClosed) return 0;
    if (state_ != State::kAnswering) return kReadBytes;
    return ignores_input_ ? 0 : kMaxAheadBytes - std::min(input_.size(), kMaxAheadBytes);
  }

  void Read() {
    if (is_reading_ || Room() == 0) return;
    is_reading_ = true;
    if (stream_.has_unread()) return Post(&ClientConnection::OnReadable);
    stream_.socket().async_wait(read_wait_, [self = shared_from_this()](error_code) { self->OnReadable(); });
  }

  void OnReadable() {
    is_reading_ = false;
    const size_t room = Room();
    if (room == 0) return;
    static thread_local std::array<char, kReadBytes> buffer;
    const SocketStream::Step step = stream_.Read(std::span<char>(buffer).first(room));
    if (step.is_over) return Close();
    read_wait_ = step.wait;
    if (step.bytes == 0) return Read();
    if (!ignores_input_) input_.Append({buffer.data(), step.bytes});
    Parse();
    Read();
  }

  void Parse() {
    if (state_ == State::kIdle && input_.size() > 0) BeginRequest();
    if (state_ == State::kHeader) {
      if (const auto refusal = incoming_->head.Check(input_.bytes())) return Fail(*refusal);
      if (!incoming_->head.is_complete()) return;  // the parser sees whole heads only
    }
    while (input_.size() > 0 && (state_ == State::kHeader || state_ == State::kBody)) {
      Parser& parser = incoming_->parser;
      error_code error;
      const size_t used = parser.put(asio::const_buffer(input_.bytes().data(), input_.size()), error);
      input_.Take(used);
      if (error == http::error::need_more) error = {};
      if (error) return Fail(error);
      if (state_ == State::kBody) incoming_->body_bytes += used;
      if (IsFramingTooLarge())
        return Fail({413, "chunk_overhead", "the framing of the chunks is too large for what they carry"});
      if (state_ == State::kHeader && parser.is_header_done() && !OnHeader()) return;
      if (parser.is_done()) return Dispatch();
      if (used > 0) continue;
      // The parser waits for the end of a chunk's line.
      if (input_.size() > owner_.options().max_header_bytes) Fail(http::error::header_limit);
      return;
    }
  }

  void BeginRequest() {
    state_ = State::kHeader;
    incoming_ = std::make_unique<IncomingRequest>(owner_.options());
    SetTimer(owner_.options().header_timeout_seconds);
  }

  // Chunks of a few bytes must not cost many times what they carry.
  bool IsFramingTooLarge() const {
    if (state_ != State::kBody || !incoming_->parser.chunked()) return false;
    return incoming_->body_bytes > kFreeFramingBytes + 3 * incoming_->parser.get().body().size();
  }

  // False when the request has been answered, or refused.
  bool OnHeader() {
    const Parser& parser = incoming_->parser;
    const ParsedRequest& message = parser.get();
    incoming_->keeps_alive = message.keep_alive();
    // An answer that does not wait for the body ends the connection.
    const bool is_all_here = IsAllHere();
    answer_ = MakeAnswer(message.version() == 11, message.keep_alive() && is_all_here,
                         message.method() == http::verb::head);
    if (const auto refusal = CheckHeader(message)) {
      Fail(*refusal);
      return false;
    }
    // Now: what is behind the body must not look like a header.
    incoming_->request = ToRequest(message, peer_);
    incoming_->responder = MakeResponder(answer_);
    incoming_->handler = owner_.OnHead(incoming_->request, incoming_->responder);
    if (!incoming_->handler) {
      if (is_all_here) input_.Take(static_cast<size_t>(parser.content_length().value_or(0)));
      ignores_input_ = !is_all_here;
      BeginAnswer();
      return false;
    }
    if (!BeginBody()) {
      Fail(HttpBodyReading::kNoMemory);
      return false;
    }
    const bool is_asked = message.count(http::field::expect) > 0;
    if (is_asked && !parser.is_done() && input_.size() == 0) answer_->Continue();
    return true;
  }

  // Whether the body, if there is one, has come with the head.
  bool IsAllHere() const {
    const Parser& parser = incoming_->parser;
    const auto announced = parser.content_length();  // of a chunked one: none
    return parser.is_done() || (announced.has_value() && *announced <= input_.size());
  }

  // False when there is no memory for it.
  bool BeginBody() {
    state_ = State::kBody;
    incoming_->body_begin = std::chrono::steady_clock::now();
    SetTimer(owner_.options().body_grace_seconds);
    const auto announced = incoming_->parser.content_length();  // of a chunked one: none
    const size_t max_bytes =
        announced.has_value() ? static_cast<size_t>(*announced) : owner_.options().max_body_bytes;
    HttpBody& body = incoming_->parser.get().body();
    body = HttpBody(owner_.NewBodyLease(), max_bytes);
    return !announced.has_value() || body.Reserve(std::min(max_bytes, kFirstBodyBytes));
  }

  static std::optional<HttpRefusal> CheckHeader(const ParsedRequest& message) {
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
    if (error == HttpBodyReading::kNoMemory) {
      return Fail({503, "overloaded",
                   Concat("the bodies of all requests would take more than ",
                          owner_.options().max_buffered_body_bytes, " bytes: try again")});
    }
    Fail({400, "malformed", Concat("malformed HTTP: ", error.message())});
  }

  // Answers a request that will not be handled, and hangs up: what follows on the wire cannot be trusted.
  void Fail(const HttpRefusal& refusal) {
    if (!answer_) answer_ = MakeAnswer(true, false, false);
    answer_->EndKeepAlive();
    HttpHeaders sent = answer_->SendError(refusal.status, refusal.message, HeadersOf(refusal));
    Tell({.reason = refusal.reason, .peer = peer_, .status = refusal.status, .headers = std::move(sent)});
    ignores_input_ = true;
    BeginAnswer();
  }

  void Reject(std::string_view reason) {
    Tell({.reason = reason, .peer = peer_});
    Close();
  }

  // Before the answer goes out, which another step does.
  void Tell(const HttpRejection& rejection) const {
    if (owner_.options().on_rejected) owner_.options().on_rejected(rejection);
  }

  void Dispatch() {
    const HttpHandler handler = std::move(incoming_->handler);
    HttpRequest request = std::move(incoming_->request);
    std::shared_ptr<HttpResponder> responder = std::move(incoming_->responder);
    std::tie(request.body, request.body_lease) = incoming_->parser.get().body().Take();
    if (incoming_->keeps_alive) answer_->KeepAlive();
    BeginAnswer();
    owner_.Handle(handler, std::move(request), std::move(responder));
  }

  void BeginAnswer() {
    state_ = State::kAnswering;
    StopTimer();
    incoming_.reset();
    if (ignores_input_) input_.Clear();
    input_.FreeUnused();
  }

  std::shared_ptr<HttpAnswer> MakeAnswer(bool is_http_1_1, bool keep_alive, bool is_head) {
    HttpAnswerOptions options = {.keep_alive = keep_alive,
                                 .is_http_1_1 = is_http_1_1,
                                 .is_head = is_head,
                                 .buffer_bytes = owner_.options().stream_buffer_bytes,
                                 .error_body = owner_.options().error_body,
                                 .error_headers = owner_.options().error_headers};
    return std::make_shared<HttpAnswer>(std::move(options), [weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->Post(&ClientConnection::Flush);
    });
  }

  // Sends what there is now. What is added from then on wakes once more: no loop here, so that no answer
  // keeps the thread.
  void Flush() {
    if (is_writing_ || !answer_) return;
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
    FreeMemory(output_);  // a stream may wait long for its next piece
    if (aborts_) return Close();
    if (ends_) return EndAnswer();
    if (state_ == State::kAnswering) StopTimer();
  }

  void AwaitWritable(Socket::wait_type wait) {
    is_writing_ = true;
    if (state_ == State::kAnswering) SetTimer(owner_.options().slow_reader_seconds);
    stream_.socket().async_wait(wait, [self = shared_from_this()](error_code) {
      self->is_writing_ = false;
      if (self->state_ == State::kClosed) return;
      self->WriteOn();
      self->Flush();  // what woke meanwhile found it writing
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
    ignores_input_ = true;
    input_.Clear();
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
    timer_.expires_after(TimerDuration(seconds));
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
    IncomingRequest& incoming = *incoming_;
    const double allowed = std::max(options.body_grace_seconds, static_cast<double>(incoming.body_bytes) /
                                                                    options.min_body_bytes_per_second);
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - incoming.body_begin;
    // What came fast may not be followed by nothing for ever.
    const bool is_moving =
        std::exchange(incoming.body_bytes_seen, incoming.body_bytes) != incoming.body_bytes;
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
    incoming_.reset();  // after the answer's end, as it has a responder
    owner_.Forget(shared_from_this());
  }

  HttpConnectionOwner& owner_;
  SocketStream stream_;
  Timer timer_;  // the one deadline of the current state
  const std::string peer_;
  State state_ = State::kHandshake;
  std::unique_ptr<IncomingRequest> incoming_;  // of kHeader and kBody
  std::shared_ptr<HttpAnswer> answer_;         // from the end of a request's header to the end of its answer
  Socket::wait_type read_wait_ = Socket::wait_read;
  HttpInput input_;
  std::string output_;  // being sent
  size_t written_ = 0;  // of output_
  bool is_reading_ = false, is_writing_ = false;
  bool ignores_input_ = false;          // the connection ends with this answer, which does not wait for it
  bool ends_ = false, aborts_ = false;  // what to do after output_
};

}  // namespace

std::chrono::nanoseconds TimerDuration(double seconds) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(std::clamp(seconds, 0.0, 1e8)));
}

std::shared_ptr<HttpConnection> MakeHttpConnection(HttpConnectionOwner& owner, Socket socket,
                                                   std::string peer) {
  return std::make_shared<ClientConnection>(owner, std::move(socket), std::move(peer));
}

}  // namespace terrace
