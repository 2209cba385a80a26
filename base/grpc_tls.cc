#include "base/grpc_tls.h"

#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_credentials_options.h"

namespace terrace {
namespace {

constexpr unsigned kLookEverySeconds = 1;

std::shared_ptr<grpc::experimental::CertificateProviderInterface> ProviderOf(const TlsSource& tls) {
  const std::string identity = tls.has_identity() ? tls.identity_path() : "";
  const std::string authorities = tls.has_ca() ? tls.ca_path() : "";
  return std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(identity, identity, authorities,
                                                                              kLookEverySeconds);
}

void WatchFiles(const TlsSource& tls, grpc::experimental::TlsCredentialsOptions& options) {
  if (tls.has_identity()) options.watch_identity_key_cert_pairs();
  if (tls.has_ca()) options.watch_root_certs();
}

}  // namespace

std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(const TlsSource* tls) {
  if (tls == nullptr) return grpc::InsecureServerCredentials();
  grpc::experimental::TlsServerCredentialsOptions options(ProviderOf(*tls));
  WatchFiles(*tls, options);
  options.set_cert_request_type(tls->has_ca() ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                              : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  return grpc::experimental::TlsServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(const TlsSource* tls) {
  if (tls == nullptr) return grpc::InsecureChannelCredentials();
  grpc::experimental::TlsChannelCredentialsOptions options;
  if (tls->has_identity() || tls->has_ca()) options.set_certificate_provider(ProviderOf(*tls));
  WatchFiles(*tls, options);
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace terrace
