// One accepted connection as bytes, plain or TLS, without a buffer of its own: steps never block, and say
// what to wait for when there is nothing to do. Owned by one HTTP connection; one thread at a time.
#pragma once

#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/strand.hpp>

#include <memory>
#include <span>
#include <string_view>

struct ssl_st;      // OpenSSL's SSL
struct ssl_ctx_st;  // and SSL_CTX

namespace terrace {

class SocketStream {
 public:
  // One thing at a time. tcp::socket's could be any executor: it would keep this one on the heap, once more
  // for each wait and each post.
  using Executor = boost::asio::strand<boost::asio::io_context::executor_type>;
  using Socket = boost::asio::basic_stream_socket<boost::asio::ip::tcp, Executor>;
  struct Step {
    size_t bytes = 0;      // read or written
    bool is_over = false;  // nothing more can come, or be sent
    // When neither: what to wait for before the next try.
    Socket::wait_type wait = Socket::wait_read;
  };

  // `tls` null: plain text.
  SocketStream(Socket socket, const std::shared_ptr<ssl_ctx_st>& tls);
  ~SocketStream();

  Socket& socket() { return socket_; }
  bool is_tls() const { return ssl_ != nullptr; }

  Step Handshake();  // of TLS; `bytes` is 1 when it is done
  Step Read(std::span<char> into);
  Step Write(std::string_view bytes);
  bool has_unread() const;  // bytes that the socket does not have any more
  void EndSending();        // the peer sees the end of what was written
  void Close();

 private:
  Step ToStep(int result);

  Socket socket_;
  ssl_st* const ssl_;  // owned; null: plain text
  bool is_broken_ = false;
};

}  // namespace terrace
