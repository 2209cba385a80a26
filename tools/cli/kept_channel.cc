#include "tools/cli/kept_channel.h"

#include <string_view>
#include <vector>

#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"

namespace terrace {

std::shared_ptr<grpc::Channel> MakeKeptChannel(const std::string& address) {
  static auto& kept = *new std::vector<std::shared_ptr<grpc::Channel>>();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  kept.push_back(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  return kept.back();
}

Status NoneAnswers(const char* kind, const std::string& address, const Status& status) {
  // gRPC's word for a service that a server does not have, without a message.
  if (status.code() == StatusCode::kUnimplemented)
    return Unavailable("what answers at ", address, " is not a ", kind);
  const bool is_router = std::string_view(kind) == "router";
  return Unavailable("no ", kind, " answers at ", address, is_router ? " (`terrace up` starts one)" : "",
                     ": ", Message(status));
}

}  // namespace terrace
