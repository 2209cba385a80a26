#include "base/tls_probe.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>

#include <chrono>
#include <memory>

#include "base/clock.h"

namespace terrace {
namespace {

constexpr Duration kTimeout = std::chrono::seconds(2);
constexpr int kPollMilliseconds = 50;

// Until it can go on, for a moment at most: false when it cannot yet.
bool Await(BIO* connection) {
  const bool reads = BIO_should_read(connection) != 0;
  pollfd waits = {.fd = static_cast<int>(BIO_get_fd(connection, nullptr)),
                  .events = static_cast<short>(reads ? POLLIN : POLLOUT),
                  .revents = 0};
  return poll(&waits, 1, kPollMilliseconds) > 0;
}

// What the error of a handshake tells.
StatusOr<bool> WhyNot(const std::string& address) {
  const unsigned long error = ERR_peek_last_error();
  const int reason = ERR_GET_REASON(error);
  char text[256];
  ERR_error_string_n(error, text, sizeof(text));
  ERR_clear_error();
  if (ERR_GET_LIB(error) == ERR_LIB_SSL) {
    if (reason == SSL_R_WRONG_VERSION_NUMBER) return false;  // what came is no TLS record
    if (reason >= SSL_AD_REASON_OFFSET) return true;         // an alert of the peer's
  }
  return Unavailable(address, ": nothing is known of what it speaks: ", text);
}

}  // namespace

StatusOr<bool> SpeaksTls(const std::string& address, const std::function<bool()>& is_cancelled) {
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()),
                                                                  &SSL_CTX_free);
  CHECK(context != nullptr);
  const std::unique_ptr<BIO, decltype(&BIO_free_all)> connection(BIO_new_ssl_connect(context.get()),
                                                                 &BIO_free_all);
  CHECK(connection != nullptr);
  BIO_set_conn_hostname(connection.get(), address.c_str());
  ERR_clear_error();
  BIO_set_nbio(connection.get(), 1);
  const MonoTime deadline = RealClock().Now() + kTimeout;
  while (BIO_do_connect(connection.get()) != 1) {
    if (BIO_should_retry(connection.get()) == 0) return WhyNot(address);
    do {  // asked before it can go on, OpenSSL 3.0 would spin until the connection is there
      if (is_cancelled && is_cancelled()) return Cancelled("interrupted");
      if (RealClock().Now() >= deadline)
        return Unavailable(address, ": nothing is known of what it speaks: no answer within ",
                           Seconds(kTimeout), " s");
    } while (!Await(connection.get()));
  }
  return true;
}

}  // namespace terrace
