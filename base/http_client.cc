#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>

#include <algorithm>
#include <chrono>
#include <optional>

#include "base/host_port.h"
#include "base/http_server.h"

namespace terrace {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr size_t kMaxBodyBytes = size_t{64} << 20;

// One request on a connection of its own; each step starts the next.
class Get {
 public:
  Get(const HostPort& peer, const std::string& path) : peer_(peer) {
    request_.version(11);
    request_.method(http::verb::get);
    request_.target(path);
    request_.set(http::field::host, peer.ToString());
    request_.set(http::field::connection, "close");
    response_.body_limit(kMaxBodyBytes);
  }

  // Nothing when the time is over.
  std::optional<error_code> Run(double timeout_seconds) {
    resolver_.async_resolve(peer_.host, std::to_string(peer_.port),
                            [this](error_code error, const tcp::resolver::results_type& found) {
                              if (Failed(error)) return;
                              Connect(found);
                            });
    io_.run_for(std::chrono::duration_cast<std::chrono::nanoseconds>(
        std::chrono::duration<double>(std::clamp(timeout_seconds, 0.0, 1e8))));
    return outcome_;
  }

  const http::response<http::string_body>& response() const { return response_.get(); }

 private:
  bool Failed(error_code error) {
    if (error) outcome_ = error;
    return static_cast<bool>(error);
  }
  void Connect(const tcp::resolver::results_type& found) {
    asio::async_connect(socket_, found, [this](error_code error, const tcp::endpoint&) {
      if (Failed(error)) return;
      http::async_write(socket_, request_, [this](error_code write_error, size_t) {
        if (Failed(write_error)) return;
        http::async_read(socket_, buffer_, response_,
                         [this](error_code read_error, size_t) { outcome_ = read_error; });
      });
    });
  }

  const HostPort peer_;
  asio::io_context io_;
  tcp::resolver resolver_{io_};
  tcp::socket socket_{io_};
  boost::beast::flat_buffer buffer_;
  http::request<http::empty_body> request_;
  http::response_parser<http::string_body> response_;
  std::optional<error_code> outcome_;
};

}  // namespace

StatusOr<std::string> HttpGet(const std::string& url, double timeout_seconds) try {
  constexpr std::string_view kScheme = "http://";
  const std::string_view rest = std::string_view(url).substr(url.starts_with(kScheme) ? kScheme.size() : 0);
  const size_t slash = std::min(rest.find('/'), rest.size());
  ASSIGN_OR_RETURN(const HostPort peer, ParseHostPort(rest.substr(0, slash)));
  Get get(peer, slash == rest.size() ? "/" : std::string(rest.substr(slash)));
  const std::optional<error_code> outcome = get.Run(timeout_seconds);
  if (!outcome) return DeadlineExceeded(url, ": no answer within ", timeout_seconds, " s");
  if (*outcome) return Unavailable(url, ": ", outcome->message());
  const auto& response = get.response();
  if (response.result_int() == 200) return response.body();
  const std::string error =
      Concat(url, ": HTTP ", response.result_int(), ": ", response.body().substr(0, 200));
  return response.result_int() == 404 ? NotFound(error) : Unavailable(error);
} catch (const std::exception& error) {
  return Internal(url, ": ", error.what());
}

}  // namespace terrace
