#include "tools/cli/kept_channel.h"

#include <string_view>
#include <vector>

#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"
#include "tools/cli/key.h"

namespace terrace {

StatusOr<ChannelSecurity> OpenSecurity(const ServerAccess& flags) {
  ChannelSecurity out{.server_name = flags.server_name};
  if (!flags.api_key_file.empty()) {
    ASSIGN_OR_RETURN(const std::string key, ReadApiKey(flags.api_key_file));
    out.authorization = "Bearer " + key;
  }
  if (flags.tls.ca.empty()) return out;
  ASSIGN_OR_RETURN(const auto tls, LoadTls(flags.tls));
  const grpc::SslCredentialsOptions options{.pem_root_certs = tls->ca_pem,
                                            .pem_private_key = tls->identity_pem,
                                            .pem_cert_chain = tls->identity_pem};
  out.credentials = grpc::SslCredentials(options);
  return out;
}

void AddAuthorization(const std::string& authorization, grpc::ClientContext& context) {
  if (!authorization.empty()) context.AddMetadata("authorization", authorization);
}

std::shared_ptr<grpc::Channel> MakeKeptChannel(const std::string& address, const ChannelSecurity& security) {
  static auto& kept = *new std::vector<std::shared_ptr<grpc::Channel>>();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  if (!security.server_name.empty()) arguments.SetSslTargetNameOverride(security.server_name);
  const auto credentials =
      security.credentials == nullptr ? grpc::InsecureChannelCredentials() : security.credentials;
  kept.push_back(grpc::CreateCustomChannel(address, credentials, arguments));
  return kept.back();
}

Status NoneAnswers(const char* kind, const std::string& address, const Status& status) {
  // gRPC's word for a service that a server does not have, without a message.
  if (status.code() == StatusCode::kUnimplemented)
    return Unavailable("what answers at ", address, " is not a ", kind);
  if (status.code() == StatusCode::kUnauthenticated || status.code() == StatusCode::kPermissionDenied)
    return status;  // one does
  const bool is_router = std::string_view(kind) == "router";
  return Unavailable("no ", kind, " answers at ", address, is_router ? " (`terrace up` starts one)" : "",
                     ": ", Message(status));
}

}  // namespace terrace
