#include "base/socket_stream.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <cerrno>

namespace terrace {
namespace {

using boost::system::error_code;

int DescriptorOf(BIO* bio) { return static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio))); }

bool WouldBlock() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

int SocketRead(BIO* bio, char* into, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t received = recv(DescriptorOf(bio), into, static_cast<size_t>(size), 0);
  if (received < 0 && WouldBlock()) BIO_set_retry_read(bio);
  return static_cast<int>(received);
}

// As OpenSSL's own, but a peer that has gone is an error, not a signal.
int SocketWrite(BIO* bio, const char* bytes, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t sent = send(DescriptorOf(bio), bytes, static_cast<size_t>(size), MSG_NOSIGNAL);
  if (sent < 0 && WouldBlock()) BIO_set_retry_write(bio);
  return static_cast<int>(sent);
}

long SocketControl(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

const BIO_METHOD* SocketMethod() {
  static const BIO_METHOD* const method = [] {
    BIO_METHOD* const made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "terrace socket");
    BIO_meth_set_read(made, &SocketRead);
    BIO_meth_set_write(made, &SocketWrite);
    BIO_meth_set_ctrl(made, &SocketControl);
    return made;
  }();
  return method;
}

SSL* NewServerSide(SSL_CTX& context, int descriptor) {
  SSL* const ssl = SSL_new(&context);
  BIO* const bio = BIO_new(SocketMethod());
  BIO_set_data(bio, reinterpret_cast<void*>(static_cast<intptr_t>(descriptor)));
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl, bio, bio);
  SSL_set_accept_state(ssl);
  return ssl;
}

}  // namespace

SocketStream::SocketStream(Socket socket, const std::shared_ptr<ssl_ctx_st>& tls)
    : socket_(std::move(socket)),
      ssl_(tls == nullptr ? nullptr : NewServerSide(*tls, socket_.native_handle())) {
  error_code ignored;
  socket_.non_blocking(true, ignored);
}

SocketStream::~SocketStream() { SSL_free(ssl_); }

SocketStream::Step SocketStream::ToStep(int result) {
  if (result > 0) return {.bytes = static_cast<size_t>(result)};
  const int error = SSL_get_error(ssl_, result);
  ERR_clear_error();
  if (error == SSL_ERROR_WANT_READ) return {.wait = Socket::wait_read};
  if (error == SSL_ERROR_WANT_WRITE) return {.wait = Socket::wait_write};
  is_broken_ = error != SSL_ERROR_ZERO_RETURN;
  return {.is_over = true};
}

SocketStream::Step SocketStream::Handshake() {
  ERR_clear_error();
  return ToStep(SSL_do_handshake(ssl_));
}

SocketStream::Step SocketStream::Read(std::span<char> into) {
  if (ssl_ != nullptr) {
    ERR_clear_error();
    return ToStep(SSL_read(ssl_, into.data(), static_cast<int>(into.size())));
  }
  error_code error;
  const size_t bytes = socket_.read_some(boost::asio::buffer(into.data(), into.size()), error);
  if (error == boost::asio::error::would_block) return {.wait = Socket::wait_read};
  return {.bytes = bytes, .is_over = static_cast<bool>(error)};
}

SocketStream::Step SocketStream::Write(std::string_view bytes) {
  if (ssl_ != nullptr) {
    ERR_clear_error();
    return ToStep(SSL_write(ssl_, bytes.data(), static_cast<int>(bytes.size())));
  }
  error_code error;
  const size_t written = socket_.write_some(boost::asio::buffer(bytes.data(), bytes.size()), error);
  if (error == boost::asio::error::would_block) return {.wait = Socket::wait_write};
  return {.bytes = written, .is_over = static_cast<bool>(error)};
}

bool SocketStream::has_unread() const { return ssl_ != nullptr && SSL_pending(ssl_) > 0; }

void SocketStream::EndSending() {
  if (ssl_ != nullptr && !is_broken_ && SSL_is_init_finished(ssl_)) {
    SSL_shutdown(ssl_);  // what cannot be sent at once is not
    ERR_clear_error();
  }
  error_code ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
}

void SocketStream::Close() {
  error_code ignored;
  socket_.shutdown(Socket::shutdown_both, ignored);
  socket_.close(ignored);
}

}  // namespace terrace
