// gRPC's credentials from a TlsSource: what it reads anew is used by new connections about a second later.
// `tls` null: plain text. Thread-safe.
#pragma once

#include <memory>

#include "base/tls.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"

namespace terrace {

// The source has an identity; with authorities, only clients whose certificates are of theirs may connect.
std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(const TlsSource* tls);

// Believes the source's authorities, or the system's; shows its identity, if it has one.
std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(const TlsSource* tls);

}  // namespace terrace
