// A small asynchronous HTTP/1.1 server (Boost.Beast): no thread per connection; one library for the public
// API and for ops listeners. Owns its listener, connections and io threads. Start and Stop from the owner's
// thread; handlers run on the io threads and must not block; an HttpResponder may be used from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/byte_budget.h"
#include "base/status.h"

namespace terrace {

class TlsSource;

struct HttpRequest {
  std::string method;  // "POST"
  std::string path;    // without the query
  std::string query;
  std::map<std::string, std::string> headers;  // names in lower case; repeated ones joined by ", "
  std::string body;
  std::string peer;           // "127.0.0.1:51234"
  ByteLease body_lease = {};  // of max_buffered_body_bytes: to be kept as long as what was in the body
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

// The answer to one request. Exactly one of Send, or StartStream ... Finish/Abort. Calls after the end, or
// after the peer has gone, do nothing. Dropping it without an answer sends a 500.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  virtual void Send(int status, std::string body, std::string_view content_type = "application/json",
                    const HttpHeaders& headers = {}) = 0;
  // A chunked response whose head goes out at once.
  virtual void StartStream(int status, std::string_view content_type, const HttpHeaders& headers = {}) = 0;
  // False when the peer is gone: the caller should cancel its work.
  virtual bool Write(std::string chunk) = 0;
  // More than stream_buffer_bytes are unsent: the caller should write no more until OnRoom's callback.
  virtual bool is_full() const = 0;
  // Calls `on_room`, on an io thread, each time an answer that was full has half its room again. Replaces an
  // earlier one.
  virtual void OnRoom(std::function<void()> on_room) = 0;
  virtual void Finish() = 0;  // ends the stream properly
  virtual void Abort() = 0;   // closes the connection without ending the chunked body
  // Calls `on_close` once when the peer goes away before the answer is complete (at once if it already has);
  // never after the answer is complete. Replaces an earlier one.
  virtual void OnClose(std::function<void()> on_close) = 0;
  // The peer is gone because it was hung up on: it took nothing for slow_reader_seconds.
  virtual bool is_too_slow() const = 0;
};

using HttpHandler = std::function<void(HttpRequest request, std::shared_ptr<HttpResponder> responder)>;

// Sees the head of a request (`head` has no body yet) before any of its body is read. Returns what handles it
// when its body is there, with the same responder; or null when it has answered: the body is not waited for
// then. One that has come with the head is skipped; else the connection ends with the answer.
using HttpHeadHandler =
    std::function<HttpHandler(const HttpRequest& head, const std::shared_ptr<HttpResponder>& responder)>;

// Why a request was not handled, or its connection closed.
inline constexpr std::array<std::string_view, 14> kHttpRejections = {
    "malformed",        "transfer_encoding", "expectation",    "method",         "uri_too_long",
    "header_too_large", "too_many_headers",  "body_too_large", "chunk_overhead", "overloaded",
    "slow_header",      "slow_body",         "slow_reader",    "tls_handshake"};

struct HttpRejection {
  std::string_view reason;  // one of kHttpRejections
  std::string_view peer;
  int status = 0;            // of the answer; 0: there was none of the server's own
  HttpHeaders headers = {};  // of that answer: those of error_headers are among them
};

struct HttpServerOptions {
  std::string address = "127.0.0.1:0";  // host:port; port 0: any free one
  size_t threads = 1;
  std::shared_ptr<TlsSource> tls = {};      // absent: plain text. New connections use what it has at the time
  size_t max_body_bytes = size_t{8} << 20;  // more: 413 before it is read
  // Of all bodies that are read or handled, together: a request that needs more is answered 503.
  size_t max_buffered_body_bytes = size_t{1} << 30;
  size_t max_header_bytes = size_t{60} << 10;  // of the first line and all headers; more: 431
  size_t max_headers = 100;                    // more: 431
  size_t max_field_bytes = size_t{16} << 10;   // of each header, name and value; more: 431
  size_t max_target_bytes = size_t{8} << 10;   // of the URI; more: 414
  size_t max_connections = 16384;              // more wait to be accepted
  size_t stream_buffer_bytes = size_t{256} << 10;
  // From a request's first byte to its body, and from a connection's begin to its first request: 408, or
  // close.
  double header_timeout_seconds = 10;
  double min_body_bytes_per_second = 1024;  // of a body that takes longer than the grace: 408
  double body_grace_seconds = 10;
  double idle_timeout_seconds = 600;  // keep-alive connections
  double slow_reader_seconds = 60;    // a peer that takes nothing of an answer for as long is hung up on
  // Body of errors the server itself makes (400, 405, 408, 413, 414, 417, 431, 500, 503): given the HTTP
  // status and a message.
  std::function<std::string(int status, std::string_view message)> error_body;
  std::function<HttpHeaders()> error_headers = {};  // of the same replies, beside the usual ones
  // On the io threads; must not block.
  std::function<void(const HttpRejection& rejection)> on_rejected = {};
  std::function<void(size_t open)> on_connections = {};  // their number has changed; one call at a time
  std::function<void()> on_full = {};  // nothing more is accepted until a connection ends; one call at a time
};

class HttpServer {
 public:
  // UNAVAILABLE when the address cannot be bound ("127.0.0.1:8080: Address already in use").
  static StatusOr<std::unique_ptr<HttpServer>> Start(HttpServerOptions options, HttpHandler handler);
  static StatusOr<std::unique_ptr<HttpServer>> StartByHead(HttpServerOptions options,
                                                           HttpHeadHandler head_handler);
  virtual ~HttpServer() = default;          // Stop()
  virtual std::string address() const = 0;  // with the real port
  // Accepts nothing new, closes idle connections, waits up to `grace_seconds` for answers in progress, then
  // closes.
  virtual void Stop(double grace_seconds) = 0;
};

// One blocking GET with a deadline, for status commands and tests: the body of a 200, else an error with the
// code. `url` is host:port/path, http only.
StatusOr<std::string> HttpGet(const std::string& url, double timeout_seconds);

}  // namespace terrace
