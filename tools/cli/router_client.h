// A router's Inference service as an Answerer. Thread-safe; work happens on gRPC's threads.
#pragma once

#include <memory>
#include <string>

#include "proto/terrace/v1/inference.grpc.pb.h"
#include "tools/cli/answerer.h"
#include "tools/cli/kept_channel.h"

namespace terrace {

inline constexpr char kDefaultRouter[] = "127.0.0.1:8081";

class RouterClient : public Answerer {
 public:
  // host:port; connects with the first request.
  explicit RouterClient(std::string address, const ChannelSecurity& security = {});
  std::unique_ptr<AnswerCall> Start(const v1::GenerateRequest& request, OnAnswerPiece on_piece) override;
  StatusOr<v1::ListModelsResponse> ListModels() override;

 private:
  const std::string address_;
  const std::string authorization_;  // "Bearer <key>"; "": none
  const std::unique_ptr<v1::Inference::Stub> stub_;
};

}  // namespace terrace
