// A model run in this process, as an Answerer: the worker's engine under the text handling the router does.
// Thread-safe; answers come from the engine's thread.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "tools/cli/answerer.h"
#include "worker/engine/open_engine.h"

namespace terrace {

// Since its start; absent where it has no drafter.
std::optional<SpeculationStats> DraftedBy(const Engine& engine);

// Which build computes in this process, by its build id: this program, and where `device`, as asked for or
// resolved, may be more than CPUs, the library of such devices with it.
std::string BuildFor(const std::string& device);

class LocalModel : public Answerer {
 public:
  static StatusOr<std::unique_ptr<LocalModel>> Open(const OpenEngineOptions& options);

  std::unique_ptr<AnswerCall> Start(const v1::GenerateRequest& request, OnAnswerPiece on_piece) override;
  StatusOr<v1::ListModelsResponse> ListModels() override;  // this one
  std::optional<SpeculationStats> Speculation() const override { return DraftedBy(*opened_.engine); }
  std::optional<ModelFacts> Facts() const override;
  // Why the model is on the CPUs, where device: auto found or was named a library of devices; else "".
  std::string device_note() const;

 private:
  explicit LocalModel(OpenedEngine opened) : opened_(std::move(opened)) {}

  const OpenedEngine opened_;
};

}  // namespace terrace
