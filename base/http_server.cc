#include "base/http_server.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include "base/byte_budget.h"
#include "base/host_port.h"
#include "base/http_connection.h"
#include "base/log.h"
#include "base/socket_stream.h"

namespace terrace {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr double kAcceptRetrySeconds = 0.1;  // after an error such as "too many open files"

std::string ToText(const tcp::endpoint& endpoint) {
  return HostPort{.host = endpoint.address().to_string(), .port = endpoint.port()}.ToString();
}

class BeastServer final : public HttpServer, public HttpConnectionOwner {
 public:
  BeastServer(HttpServerOptions options, HttpHeadHandler head_handler)
      : options_(std::move(options)),
        head_handler_(std::move(head_handler)),
        body_budget_(std::make_shared<ByteBudget>(options_.max_buffered_body_bytes)),
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
      changed_.wait_for(lock, TimerDuration(grace_seconds), [this] { return connections_.empty(); });
      for (const auto& connection : connections_) connection->Abandon();
    }
    work_.reset();
    threads_.clear();  // joins: the last connection's last handler ends the io loop
  }

 private:
  const HttpServerOptions& options() const override { return options_; }

  ByteLease NewBodyLease() const override { return ByteLease(body_budget_); }

  // After an exception of either the dropped responder answers 500.
  HttpHandler OnHead(const HttpRequest& head, const std::shared_ptr<HttpResponder>& responder) override try {
    return head_handler_(head, responder);
  } catch (const std::exception& error) {
    LogException(error);
    return nullptr;
  }

  void Handle(const HttpHandler& handler, HttpRequest request,
              std::shared_ptr<HttpResponder> responder) override try {
    handler(std::move(request), std::move(responder));
  } catch (const std::exception& error) {
    LogException(error);
  }

  static void LogException(const std::exception& error) {
    Log(LogLevel::kError, "http_handler_exception", {{"what", error.what()}});
  }

  void Forget(const std::shared_ptr<HttpConnection>& connection) override {
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
    bool is_full = false;
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return;
      is_full = full_ = connections_.size() >= options_.max_connections;
    }
    if (is_full && options_.on_full) options_.on_full();
    if (is_full) return;
    acceptor_.async_accept(asio::make_strand(io_), [this](error_code error, SocketStream::Socket socket) {
      OnAccept(error, std::move(socket));
    });
  }

  void OnAccept(error_code error, SocketStream::Socket socket) {
    if (error == asio::error::operation_aborted) return;
    if (error && error != asio::error::connection_aborted) {
      if (!std::exchange(is_accept_failing_, true)) {
        Log(LogLevel::kWarn, "http_accept_failed", {{"address", address_}, {"error", error.message()}});
      }
      accept_timer_.expires_after(TimerDuration(kAcceptRetrySeconds));
      return accept_timer_.async_wait([this](error_code cancelled) {
        if (!cancelled) Accept();
      });
    }
    is_accept_failing_ = false;
    error_code unknown;
    const tcp::endpoint peer = error ? tcp::endpoint() : socket.remote_endpoint(unknown);
    if (!error && !unknown) {
      const auto connection = MakeHttpConnection(*this, std::move(socket), ToText(peer));
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
  const HttpHeadHandler head_handler_;
  const std::shared_ptr<ByteBudget> body_budget_;
  std::string address_;
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  tcp::acceptor acceptor_;
  asio::steady_timer accept_timer_;
  bool is_accept_failing_ = false;  // the acceptor's strand
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::shared_ptr<HttpConnection>> connections_;  // GUARDED_BY(mutex_)
  bool full_ = false;                                      // GUARDED_BY(mutex_): not accepting
  bool stopping_ = false;                                  // GUARDED_BY(mutex_)
  std::vector<std::jthread> threads_;                      // last: joined before what they use dies
};

}  // namespace

StatusOr<std::unique_ptr<HttpServer>> HttpServer::StartByHead(HttpServerOptions options,
                                                              HttpHeadHandler head_handler) {
  auto server = std::make_unique<BeastServer>(std::move(options), std::move(head_handler));
  RETURN_IF_ERROR(server->Listen());
  return server;
}

StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpServerOptions options, HttpHandler handler) {
  return StartByHead(std::move(options),
                     [handler = std::move(handler)](
                         const HttpRequest&, const std::shared_ptr<HttpResponder>&) { return handler; });
}

}  // namespace terrace
