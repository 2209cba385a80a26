#include "base/tls.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>
#include <vector>

#include "base/log.h"

namespace terrace {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 20;
constexpr double kDay = 86400;
constexpr double kSoonSeconds = 14 * kDay;

using BioPtr = std::unique_ptr<BIO, decltype(&BIO_free)>;
using CertificatePtr = std::unique_ptr<X509, decltype(&X509_free)>;
using KeyPtr = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

// OpenSSL's word for its last error, which holds no data; the thread's queue of errors is empty afterwards.
std::string OpenSslError() {
  const char* const reason = ERR_reason_error_string(ERR_peek_last_error());
  std::string text = reason == nullptr ? "unknown error" : reason;
  ERR_clear_error();
  return text;
}

StatusOr<std::string> ReadPem(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return NotFound(path, " cannot be read: ", std::strerror(errno));
  std::string bytes(kMaxFileBytes + 1, '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  bytes.resize(static_cast<size_t>(file.gcount()));
  if (file.bad()) return NotFound(path, " cannot be read");
  if (bytes.size() > kMaxFileBytes)
    return FailedPrecondition(path, " has more than ", kMaxFileBytes, " bytes");
  return bytes;
}

BioPtr Open(const std::string& pem) {
  return {BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), &BIO_free};
}

int NoPassword(char*, int, int, void*) { return 0; }

StatusOr<std::vector<CertificatePtr>> ParseCertificates(const std::string& path, const std::string& pem) {
  std::vector<CertificatePtr> out;
  const BioPtr bio = Open(pem);
  while (X509* const next = PEM_read_bio_X509(bio.get(), nullptr, &NoPassword, nullptr)) {
    out.emplace_back(next, &X509_free);
  }
  const bool is_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (out.empty() || !is_end)
    return FailedPrecondition(path,
                              out.empty() ? " holds no PEM certificate" : " holds a damaged certificate");
  return out;
}

double EndOf(const X509* certificate) {
  tm parts = {};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &parts) != 1) return 0;
  return static_cast<double>(timegm(&parts));
}

double FirstEnd(const std::vector<CertificatePtr>& certificates) {
  double first = EndOf(certificates.front().get());
  for (const CertificatePtr& each : certificates) first = std::min(first, EndOf(each.get()));
  return first;
}

int SelectHttp11(SSL*, const unsigned char** out, unsigned char* out_size, const unsigned char* offered,
                 unsigned int offered_size, void*) {
  static constexpr unsigned char kOurs[] = "\x08http/1.1";
  unsigned char* selected = nullptr;
  if (SSL_select_next_proto(&selected, out_size, kOurs, sizeof(kOurs) - 1, offered, offered_size) !=
      OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *out = selected;
  return SSL_TLSEXT_ERR_OK;
}

std::shared_ptr<SSL_CTX> NewServerContext() {
  std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), &SSL_CTX_free);
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  // No sessions are kept: a client's certificate is judged anew each time, and 10,000 streams hold less
  // memory.
  SSL_CTX_set_options(context.get(), SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                         SSL_OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context.get(), 0);
  SSL_CTX_set_mode(context.get(), SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                      SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_alpn_select_cb(context.get(), &SelectHttp11, nullptr);
  return context;
}

Status SetIdentity(const TlsFiles& files, TlsMaterial& out) {
  ASSIGN_OR_RETURN(const std::string chain_pem, ReadPem(files.certificate));
  ASSIGN_OR_RETURN(const std::string key_pem, ReadPem(files.key));
  ASSIGN_OR_RETURN(const auto chain, ParseCertificates(files.certificate, chain_pem));
  const KeyPtr key(PEM_read_bio_PrivateKey(Open(key_pem).get(), nullptr, &NoPassword, nullptr),
                   &EVP_PKEY_free);
  ERR_clear_error();
  if (key == nullptr) return FailedPrecondition(files.key, " holds no PEM private key without a password");
  if (X509_check_private_key(chain.front().get(), key.get()) != 1) {
    ERR_clear_error();
    return FailedPrecondition(files.key, " is not the key of ", files.certificate);
  }
  SSL_CTX* const context = out.server_context.get();
  bool is_taken = SSL_CTX_use_certificate(context, chain.front().get()) == 1 &&
                  SSL_CTX_use_PrivateKey(context, key.get()) == 1;
  for (size_t i = 1; i < chain.size() && is_taken; ++i) {
    is_taken = SSL_CTX_add1_chain_cert(context, chain[i].get()) == 1;
  }
  if (!is_taken) return FailedPrecondition(files.certificate, " cannot be used: ", OpenSslError());
  out.identity_pem = Concat(key_pem, "\n", chain_pem);
  out.expiry_unix_seconds = FirstEnd(chain);
  return {};
}

Status SetAuthorities(const TlsFiles& files, TlsMaterial& out) {
  ASSIGN_OR_RETURN(out.ca_pem, ReadPem(files.ca));
  ASSIGN_OR_RETURN(const auto authorities, ParseCertificates(files.ca, out.ca_pem));
  SSL_CTX* const context = out.server_context.get();
  for (const CertificatePtr& each : authorities) {
    if (X509_STORE_add_cert(SSL_CTX_get_cert_store(context), each.get()) != 1 ||
        SSL_CTX_add_client_CA(context, each.get()) != 1) {
      return FailedPrecondition(files.ca, " cannot be used: ", OpenSslError());
    }
  }
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  if (out.identity_pem.empty()) out.expiry_unix_seconds = FirstEnd(authorities);
  return {};
}

std::vector<FileStamp> StampsOf(const TlsFiles& files) {
  return {StampOf(files.certificate), StampOf(files.key), StampOf(files.ca)};
}

double UnixNow() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

StatusOr<std::shared_ptr<const TlsMaterial>> LoadTls(const TlsFiles& files) {
  auto out = std::make_shared<TlsMaterial>();
  ERR_clear_error();
  out->server_context = NewServerContext();
  if (!files.certificate.empty()) RETURN_IF_ERROR(SetIdentity(files, *out));
  if (!files.ca.empty()) RETURN_IF_ERROR(SetAuthorities(files, *out));
  return std::shared_ptr<const TlsMaterial>(std::move(out));
}

AnonymousFile::AnonymousFile() : descriptor_(memfd_create("terrace", MFD_CLOEXEC)) {}

Status AnonymousFile::Replace(std::string_view bytes) {
  // Written beside and then put in place: a reader has the old one open, or the new one.
  const int fresh = memfd_create("terrace", MFD_CLOEXEC);
  const bool is_whole = descriptor_ >= 0 && fresh >= 0 &&
                        write(fresh, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()) &&
                        dup3(fresh, descriptor_, O_CLOEXEC) >= 0;
  const int error = errno;
  if (fresh >= 0) close(fresh);
  return is_whole ? Status() : Unavailable("a file in memory: ", std::strerror(error));
}

std::string AnonymousFile::path() const { return Concat("/proc/self/fd/", descriptor_); }

StatusOr<std::shared_ptr<TlsSource>> TlsSource::Open(TlsFiles files, Options options) {
  std::shared_ptr<TlsSource> source(new TlsSource(std::move(files), std::move(options)));
  RETURN_IF_ERROR(source->Load(StampsOf(source->files_)));
  if (MetricRegistry* const metrics = source->options_.metrics; metrics != nullptr) {
    metrics->GetCounter("terrace_tls_reload_failures_total", std::vector<std::string>{source->options_.use});
  }
  source->watcher_ =
      std::jthread([raw = source.get()](std::stop_token stop) { raw->Watch(std::move(stop)); });
  return source;
}

std::shared_ptr<const TlsMaterial> TlsSource::Current() const {
  std::lock_guard lock(mutex_);
  return current_;
}

void TlsSource::Refresh() {
  std::lock_guard one_at_a_time(refresh_mutex_);
  const std::vector<FileStamp> stamps = StampsOf(files_);
  if (stamps == stamps_) return;
  const Status loaded = Load(stamps);
  if (loaded.ok()) {
    Log(LogLevel::kInfo, "tls_reloaded",
        {{"use", options_.use}, {"expiry_unix_seconds", Current()->expiry_unix_seconds}});
    return;
  }
  Log(LogLevel::kError, "tls_reload_failed", {{"use", options_.use}, {"error", Message(loaded)}});
  if (options_.metrics == nullptr) return;
  options_.metrics->GetCounter("terrace_tls_reload_failures_total", std::vector<std::string>{options_.use})
      .Add();
}

// The stamps are kept also of what cannot be used: it is not read again until it changes.
Status TlsSource::Load(const std::vector<FileStamp>& stamps) {
  stamps_ = stamps;
  ASSIGN_OR_RETURN(auto loaded, LoadTls(files_));
  RETURN_IF_ERROR(identity_file_.Replace(loaded->identity_pem));
  RETURN_IF_ERROR(ca_file_.Replace(loaded->ca_pem));
  const double left = loaded->expiry_unix_seconds - UnixNow();
  if ((has_identity() || has_ca()) && left < kSoonSeconds) {
    Log(LogLevel::kWarn, left < 0 ? "certificate_expired" : "certificate_expires_soon",
        {{"use", options_.use},
         {"file", has_identity() ? files_.certificate : files_.ca},
         {"days", left / kDay}});
  }
  if (options_.metrics != nullptr && (has_identity() || has_ca())) {
    options_.metrics
        ->GetGauge("terrace_cert_expiry_timestamp_seconds", std::vector<std::string>{options_.use})
        .Set(loaded->expiry_unix_seconds);
  }
  std::lock_guard lock(mutex_);
  current_ = std::move(loaded);
  return {};
}

void TlsSource::Watch(std::stop_token stop) {
  std::mutex mutex;
  std::condition_variable_any stopped;
  const auto period = std::chrono::duration<double>(options_.period_seconds);
  std::unique_lock lock(mutex);
  while (!stop.stop_requested()) {
    stopped.wait_for(lock, stop, period, [] { return false; });
    if (!stop.stop_requested()) Refresh();
  }
}

}  // namespace terrace
