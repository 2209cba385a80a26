#include "tools/cli/local_model.h"

#include <utility>

#include "base/build_id.h"
#include "tools/cli/sequence_answers.h"
#include "worker/engine/device_plugin.h"

namespace terrace {
namespace {

class LocalCall : public AnswerCall {
 public:
  explicit LocalCall(std::shared_ptr<SequenceAnswers> answers) : answers_(std::move(answers)) {}
  void Cancel() override { answers_->Close(); }

 private:
  const std::shared_ptr<SequenceAnswers> answers_;
};

}  // namespace

std::optional<SpeculationStats> DraftedBy(const Engine& engine) {
  const SpeculationStats stats = engine.Stats().speculation;
  if (stats.drafter.empty()) return std::nullopt;
  return stats;
}

std::string BuildFor(const std::string& device) {
  if (device.starts_with("cpu") || !HasDevicePlugin()) return OwnBuildId();
  const auto backend = LoadDevicePlugin();
  return backend.ok() ? Concat(OwnBuildId(), "+", BuildIdAt(*backend)) : OwnBuildId();
}

StatusOr<std::unique_ptr<LocalModel>> LocalModel::Open(const OpenEngineOptions& options) {
  ASSIGN_OR_RETURN(OpenedEngine opened, OpenEngine(options));
  return std::unique_ptr<LocalModel>(new LocalModel(std::move(opened)));
}

std::unique_ptr<AnswerCall> LocalModel::Start(const v1::GenerateRequest& request, OnAnswerPiece on_piece) {
  const auto answers = std::make_shared<SequenceAnswers>(opened_.files->text->tokenizer, request,
                                                         opened_.files->config.name, std::move(on_piece));
  const auto first = FirstSequence(request, *opened_.files->text, opened_.context_length);
  const auto submit = [this](SequenceSpec spec, std::shared_ptr<TokenSink> sink) {
    return opened_.engine->Submit(std::move(spec), std::move(sink));
  };
  const Status status = first.ok() ? answers->Start(*first, submit) : first.status();
  if (!status.ok()) answers->Fail(status);
  return std::make_unique<LocalCall>(answers);
}

std::optional<ModelFacts> LocalModel::Facts() const {
  return ModelFacts{.name = opened_.files->config.name,
                    .model_digest = opened_.files->digest.Hex(),
                    .text_digest = Digest(*opened_.files->text).Hex(),
                    .device = opened_.device,
                    .compute = opened_.compute,
                    .kv_dtype = opened_.kv_dtype,
                    .weight_dtype = opened_.weight_dtype,
                    .build = BuildFor(opened_.device),
                    .parameters = opened_.parameters,
                    .weight_bytes = opened_.weight_bytes,
                    .kv_bytes = opened_.kv_bytes};
}

std::string LocalModel::device_note() const { return HasDevicePlugin() ? opened_.device_note : ""; }

StatusOr<v1::ListModelsResponse> LocalModel::ListModels() {
  v1::ListModelsResponse response;
  v1::Model& model = *response.add_models();
  model.set_id(opened_.files->config.name);
  model.set_ready(true);
  model.set_context_length(opened_.context_length);
  model.set_parameters(opened_.parameters);
  return response;
}

}  // namespace terrace
