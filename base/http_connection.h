// One client of an HttpServer: reads its requests, one after the other, gives them to the server's handlers
// and sends their answers. Owned by the server, which outlives it, until it Forgets it.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/byte_budget.h"
#include "base/http_server.h"
#include "base/socket_stream.h"

namespace terrace {

// From any thread.
class HttpConnection {
 public:
  virtual ~HttpConnection() = default;
  virtual void Start() = 0;    // once
  virtual void Drain() = 0;    // ends when no request is being answered
  virtual void Abandon() = 0;  // ends now
};

// What a connection needs of its server. Called on the threads that run the connections.
class HttpConnectionOwner {
 public:
  virtual ~HttpConnectionOwner() = default;
  virtual const HttpServerOptions& options() const = 0;
  virtual ByteLease NewBodyLease() const = 0;
  // As of HttpHeadHandler.
  virtual HttpHandler OnHead(const HttpRequest& head, const std::shared_ptr<HttpResponder>& responder) = 0;
  virtual void Handle(const HttpHandler& handler, HttpRequest request,
                      std::shared_ptr<HttpResponder> responder) = 0;
  virtual void Forget(const std::shared_ptr<HttpConnection>& connection) = 0;  // it has ended
};

// It runs on the executor of `socket`.
std::shared_ptr<HttpConnection> MakeHttpConnection(HttpConnectionOwner& owner, SocketStream::Socket socket,
                                                   std::string peer);

// Within what timers can take.
std::chrono::nanoseconds TimerDuration(double seconds);

}  // namespace terrace
