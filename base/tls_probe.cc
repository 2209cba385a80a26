#include "base/tls_probe.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <memory>

namespace terrace {
namespace {

// OpenSSL counts in whole seconds of the clock: it gives up after one to three.
constexpr int kTimeoutSeconds = 2, kRetryMilliseconds = 50;

}  // namespace

StatusOr<bool> SpeaksTls(const std::string& address) {
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()),
                                                                  &SSL_CTX_free);
  CHECK(context != nullptr);
  const std::unique_ptr<BIO, decltype(&BIO_free_all)> connection(BIO_new_ssl_connect(context.get()),
                                                                 &BIO_free_all);
  CHECK(connection != nullptr);
  BIO_set_conn_hostname(connection.get(), address.c_str());
  ERR_clear_error();
  if (BIO_do_connect_retry(connection.get(), kTimeoutSeconds, kRetryMilliseconds) == 1) return true;
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

}  // namespace terrace
