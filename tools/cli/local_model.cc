#include "tools/cli/local_model.h"

#include <random>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "tools/cli/local_answers.h"

namespace terrace {
namespace {

constexpr uint32_t kMaxChoices = 16;  // as the router has it

SamplingParams ToSamplingParams(const v1::SamplingParams& from) {
  SamplingParams params;
  if (from.has_temperature()) params.temperature = from.temperature();
  if (from.has_top_k()) params.top_k = from.top_k();
  if (from.has_top_p()) params.top_p = from.top_p();
  if (from.has_min_p()) params.min_p = from.min_p();
  if (from.has_repetition_penalty()) params.repetition_penalty = from.repetition_penalty();
  if (from.has_presence_penalty()) params.presence_penalty = from.presence_penalty();
  if (from.has_frequency_penalty()) params.frequency_penalty = from.frequency_penalty();
  params.logit_bias.assign(from.logit_bias().begin(), from.logit_bias().end());
  params.seed = from.has_seed() ? from.seed() : std::random_device()();
  return params;
}

class LocalCall : public AnswerCall {
 public:
  explicit LocalCall(std::shared_ptr<LocalAnswers> answers) : answers_(std::move(answers)) {}
  void Cancel() override { answers_->Close(); }

 private:
  const std::shared_ptr<LocalAnswers> answers_;
};

}  // namespace

std::optional<SpeculationStats> DraftedBy(const Engine& engine) {
  const SpeculationStats stats = engine.Stats().speculation;
  if (stats.drafter.empty()) return std::nullopt;
  return stats;
}

StatusOr<std::unique_ptr<LocalModel>> LocalModel::Open(const OpenEngineOptions& options) {
  ASSIGN_OR_RETURN(OpenedEngine opened, OpenEngine(options));
  return std::unique_ptr<LocalModel>(new LocalModel(std::move(opened)));
}

StatusOr<SequenceSpec> LocalModel::MakeSpec(const v1::GenerateRequest& request) const {
  const TextAssets& text = *opened_.files->text;
  SequenceSpec spec;
  switch (request.input_case()) {
    case v1::GenerateRequest::kPrompt:
      spec.prompt = text.EncodePrompt(request.prompt());
      break;
    case v1::GenerateRequest::kChat: {
      ASSIGN_OR_RETURN(spec.prompt, text.EncodeChat(MessagesOf(request.chat())));
      break;
    }
    case v1::GenerateRequest::kPromptTokens:
      spec.prompt.assign(request.prompt_tokens().ids().begin(), request.prompt_tokens().ids().end());
      break;
    case v1::GenerateRequest::INPUT_NOT_SET:
      return InvalidArgument("a prompt is missing");
  }
  spec.request_id = request.request_id();
  spec.sampling = ToSamplingParams(request.sampling());
  spec.max_tokens = request.max_tokens();
  spec.stop_tokens.assign(request.stop_tokens().begin(), request.stop_tokens().end());
  spec.ignore_eos = request.ignore_eos();
  if (request.has_speculation_max_tokens()) spec.speculation = request.speculation_max_tokens();
  spec.top_logprobs = request.top_logprobs();
  if (request.prompt_logprobs() && spec.max_tokens == 0 && spec.prompt.size() < opened_.context_length) {
    spec.max_tokens =
        opened_.context_length - static_cast<uint32_t>(spec.prompt.size());  // 0 would mean none
  }
  if (request.n() > kMaxChoices || request.best_of() > kMaxChoices) {
    return InvalidArgument("at most ", kMaxChoices, " answers");
  }
  if (request.best_of() > 0 && request.best_of() < ChoicesOf(request)) {
    return InvalidArgument("best_of: ", request.best_of(), " is less than n: ", ChoicesOf(request));
  }
  return spec;
}

std::unique_ptr<AnswerCall> LocalModel::Start(const v1::GenerateRequest& request, OnAnswerPiece on_piece) {
  const auto answers = std::make_shared<LocalAnswers>(*opened_.files->text->tokenizer, request,
                                                      opened_.files->config.name, std::move(on_piece));
  const Status status = Submit(request, *answers);
  if (!status.ok()) answers->Fail(status);
  return std::make_unique<LocalCall>(answers);
}

// One sequence an answer; they differ in their seeds, and the first one scores the prompt.
Status LocalModel::Submit(const v1::GenerateRequest& request, LocalAnswers& answers) const {
  ASSIGN_OR_RETURN(const SequenceSpec first, MakeSpec(request));
  for (uint32_t draw = 0; draw < answers.draws(); ++draw) {
    SequenceSpec spec = first;
    spec.sampling.seed = ChoiceSeed(first.sampling.seed, draw);
    spec.score_prompt = draw == 0 && request.prompt_logprobs();
    const auto sink = answers.MakeSink(draw, spec.prompt);
    RETURN_IF_ERROR(opened_.engine->Submit(std::move(spec), sink));
  }
  return {};
}

std::optional<ModelFacts> LocalModel::Facts() const {
  return ModelFacts{.name = opened_.files->config.name,
                    .model_digest = opened_.files->digest.Hex(),
                    .text_digest = Digest(*opened_.files->text).Hex(),
                    .device = opened_.device,
                    .compute = opened_.compute,
                    .kv_dtype = opened_.kv_dtype,
                    .weight_dtype = opened_.weight_dtype,
                    .parameters = opened_.parameters,
                    .weight_bytes = opened_.weight_bytes,
                    .kv_bytes = opened_.kv_bytes};
}

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
