// The model of one worker, as an Answerer: its sequences under the text handling the router does, without a
// router. Thread-safe; answers come from gRPC's threads.
#pragma once

#include <memory>
#include <string>

#include "tools/cli/answerer.h"
#include "tools/cli/kept_channel.h"
#include "tools/cli/worker_client.h"

namespace terrace {

class WorkerModel : public Answerer {
 public:
  // Asks host:port what it is. Requests are for that process: one that is started there later answers
  // UNAVAILABLE, reason wrong_instance.
  static StatusOr<std::unique_ptr<WorkerModel>> Open(const std::string& address,
                                                     const ChannelSecurity& security = {});

  std::unique_ptr<AnswerCall> Start(const v1::GenerateRequest& request, OnAnswerPiece on_piece) override;
  StatusOr<v1::ListModelsResponse> ListModels() override;  // its model
  std::optional<ModelFacts> Facts() const override;

 private:
  WorkerModel(std::string address, std::unique_ptr<v1::Worker::Stub> stub)
      : address_(std::move(address)), stub_(std::move(stub)) {}

  const std::string address_;
  const std::unique_ptr<v1::Worker::Stub> stub_;
  v1::WorkerDescription description_;  // both since Open
  TextAssets text_;
};

}  // namespace terrace
