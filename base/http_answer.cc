#include "base/http_answer.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <utility>

#include "base/format.h"
#include "base/log.h"

namespace terrace {
namespace {

std::string_view ReasonPhrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 202:
      return "Accepted";
    case 204:
      return "No Content";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 414:
      return "URI Too Long";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Status";
  }
}

std::string HttpDate() { return UtcNow("%a, %d %b %Y %H:%M:%S GMT"); }

// A header value cannot end its line, whatever it was made of.
std::string OneLine(std::string_view value) {
  std::string line(value);
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c == '\r' || c == '\n' || c == '\0'; }, ' ');
  return line;
}

constexpr size_t kChunkFramingBytes = 16 + 2 + 2;  // its size in hexadecimal, two ends of lines

bool HasNoBody(int status) { return status == 204 || status == 304; }

class Responder : public HttpResponder {
 public:
  explicit Responder(std::shared_ptr<HttpAnswer> answer) : answer_(std::move(answer)) {}
  ~Responder() override { answer_->Drop(); }
  void Send(int status, std::string body, std::string_view content_type,
            const HttpHeaders& headers) override {
    answer_->Send(status, body, content_type, headers);
  }
  void StartStream(int status, std::string_view content_type, const HttpHeaders& headers) override {
    answer_->StartStream(status, content_type, headers);
  }
  bool Write(std::string chunk) override { return answer_->Write(chunk); }
  bool is_full() const override { return answer_->is_full(); }
  void OnRoom(std::function<void()> on_room) override { answer_->OnRoom(std::move(on_room)); }
  void Finish() override { answer_->Finish(); }
  void Abort() override { answer_->Abort(); }
  void OnClose(std::function<void()> on_close) override { answer_->OnClose(std::move(on_close)); }
  bool is_too_slow() const override { return answer_->is_too_slow(); }

 private:
  const std::shared_ptr<HttpAnswer> answer_;
};

}  // namespace

HttpAnswer::HttpAnswer(HttpAnswerOptions options, std::function<void()> wake)
    : options_(std::move(options)), wake_(std::move(wake)), keep_alive_(options_.keep_alive) {}

HttpAnswer::Taken HttpAnswer::Take() {
  std::lock_guard lock(mutex_);
  woken_ = false;
  taken_ += pending_.size();
  return {.bytes = std::exchange(pending_, {}), .is_last = phase_ == Phase::kDone, .is_aborted = aborted_};
}

void HttpAnswer::Sent(size_t bytes) {
  std::function<void()> on_room;
  {
    std::lock_guard lock(mutex_);
    taken_ -= bytes;
    if (!is_full_ || pending_.size() + taken_ > options_.buffer_bytes / 2) return;
    is_full_ = false;
    on_room = callbacks_.on_room;
  }
  if (on_room) on_room();
}

void HttpAnswer::Close() {
  Callbacks callbacks;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    std::swap(callbacks, callbacks_);
  }
  if (callbacks.on_close) callbacks.on_close();
}

void HttpAnswer::Continue() {
  std::lock_guard lock(mutex_);
  pending_ += "HTTP/1.1 100 Continue\r\n\r\n";
  Wake();
}

void HttpAnswer::KeepAlive() {
  std::lock_guard lock(mutex_);
  keep_alive_ = true;
}

void HttpAnswer::EndKeepAlive() {
  std::lock_guard lock(mutex_);
  keep_alive_ = false;
}

bool HttpAnswer::keep_alive() const {
  std::lock_guard lock(mutex_);
  return keep_alive_;
}

HttpHeaders HttpAnswer::SendError(int status, std::string_view message, HttpHeaders headers) {
  if (options_.error_headers) std::ranges::copy(options_.error_headers(), std::back_inserter(headers));
  const std::string body = options_.error_body ? options_.error_body(status, message) : Concat(message, "\n");
  Send(status, body, options_.error_body ? "application/json" : "text/plain; charset=utf-8", headers);
  return headers;
}

void HttpAnswer::Send(int status, std::string_view body, std::string_view content_type,
                      const HttpHeaders& headers) {
  Callbacks dropped;
  std::lock_guard lock(mutex_);
  if (phase_ != Phase::kNew || closed_) return;
  pending_ += Head(status, content_type, headers,
                   HasNoBody(status) ? std::string() : Concat("Content-Length: ", body.size(), "\r\n"));
  if (!options_.is_head && !HasNoBody(status)) pending_ += body;
  End(/*aborted=*/false, dropped);
}

void HttpAnswer::StartStream(int status, std::string_view content_type, const HttpHeaders& headers) {
  std::lock_guard lock(mutex_);
  if (phase_ != Phase::kNew || closed_) return;
  if (!options_.is_http_1_1) keep_alive_ = false;
  pending_ +=
      Head(status, content_type, headers, options_.is_http_1_1 ? "Transfer-Encoding: chunked\r\n" : "");
  phase_ = Phase::kStreaming;
  Wake();
}

bool HttpAnswer::Write(std::string_view chunk) {
  std::lock_guard lock(mutex_);
  if (phase_ != Phase::kStreaming || closed_) return false;
  if (chunk.empty() || options_.is_head) return true;  // an empty chunk would end the stream
  pending_.reserve(pending_.size() + chunk.size() + kChunkFramingBytes);
  if (options_.is_http_1_1) {
    char size[16];
    pending_.append(size, std::to_chars(size, size + sizeof size, chunk.size(), 16).ptr).append("\r\n");
  }
  pending_ += chunk;
  if (options_.is_http_1_1) pending_ += "\r\n";
  if (pending_.size() + taken_ > options_.buffer_bytes) is_full_ = true;
  Wake();
  return true;
}

void HttpAnswer::Finish() {
  Callbacks dropped;
  std::lock_guard lock(mutex_);
  if (phase_ != Phase::kStreaming || closed_) return;
  if (options_.is_http_1_1 && !options_.is_head) pending_ += "0\r\n\r\n";
  End(/*aborted=*/false, dropped);
}

void HttpAnswer::Abort() {
  Callbacks dropped;
  std::lock_guard lock(mutex_);
  if (phase_ != Phase::kDone && !closed_) End(/*aborted=*/true, dropped);
}

void HttpAnswer::OnRoom(std::function<void()> on_room) {
  std::lock_guard lock(mutex_);
  if (phase_ != Phase::kDone && !closed_) callbacks_.on_room.swap(on_room);
}

void HttpAnswer::OnClose(std::function<void()> on_close) {
  {
    std::lock_guard lock(mutex_);
    if (phase_ == Phase::kDone) return;
    if (!closed_) return callbacks_.on_close.swap(on_close);
  }
  on_close();
}

void HttpAnswer::Drop() {
  const auto phase = [this] {
    std::lock_guard lock(mutex_);
    return closed_ ? Phase::kDone : phase_;
  }();
  if (phase == Phase::kDone) return;
  Log(LogLevel::kError, "http_answer_dropped", {{"streaming", phase == Phase::kStreaming}});
  if (phase == Phase::kStreaming) return Abort();
  SendError(500, "the request was not answered");
}

std::string HttpAnswer::Head(int status, std::string_view content_type, const HttpHeaders& headers,
                             std::string_view framing) const {
  std::string head = Concat("HTTP/1.1 ", status, " ", ReasonPhrase(status), "\r\nDate: ", HttpDate(),
                            "\r\nServer: terrace\r\n", framing);
  if (!content_type.empty() && !HasNoBody(status))
    head += Concat("Content-Type: ", OneLine(content_type), "\r\n");
  if (!keep_alive_) head += "Connection: close\r\n";
  if (keep_alive_ && !options_.is_http_1_1) head += "Connection: keep-alive\r\n";
  for (const auto& [name, value] : headers) head += Concat(OneLine(name), ": ", OneLine(value), "\r\n");
  return head + "\r\n";
}

// The callbacks leave through `dropped`, to be destroyed without the lock: they may hold the last responder.
void HttpAnswer::End(bool aborted, Callbacks& dropped) {
  phase_ = Phase::kDone;
  aborted_ = aborted;
  if (aborted) keep_alive_ = false;
  std::swap(dropped, callbacks_);
  Wake();
}

void HttpAnswer::Wake() {
  if (!closed_ && !std::exchange(woken_, true)) wake_();
}

std::shared_ptr<HttpResponder> MakeResponder(std::shared_ptr<HttpAnswer> answer) {
  return std::make_shared<Responder>(std::move(answer));
}

}  // namespace terrace
