#include "tools/optimize/quantize.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/format.h"
#include "base/json.h"
#include "base/shuffle.h"
#include "tools/optimize/format_choice.h"
#include "tools/optimize/output_divergence.h"
#include "tools/optimize/sensitivity.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/compressed_tensors.h"
#include "worker/formats/gguf_config.h"
#include "worker/formats/model_writer.h"
#include "worker/tensor/held_rows.h"

namespace terrace {
namespace {

constexpr size_t kInputs = std::size(kLinearInputs);

WeightQuantization Int8Rows() { return {.bits = 8, .group = 0, .has_zero_points = false}; }

// How the output's layers are stored; of GGUF each tensor says it.
std::optional<WeightQuantization> TargetQuantization(const QuantizeTarget& target, bool is_mixed) {
  if (target.is_fp8)
    return WeightQuantization{.bits = 8, .group = 0, .has_zero_points = false, .is_float = true};
  if (target.dtype == DType::kInt8) return Int8Rows();
  if (target.is_gguf()) return std::nullopt;
  return WeightQuantization{
      .bits = 4, .group = target.group, .has_zero_points = true, .has_int8_too = is_mixed};
}

// The model as the output has it.
StatusOr<ModelConfig> TargetConfig(const ModelConfig& source, const QuantizeTarget& target, bool is_mixed) {
  ModelConfig config = AsFolderConfig(source);
  if (target.is_gguf()) {
    ASSIGN_OR_RETURN(config, AsGgufConfig(source));
  }
  config.quantization = TargetQuantization(target, is_mixed);
  if (config.quantization && config.experts > 0) {
    for (uint32_t layer = 0; layer < config.layers; ++layer)
      config.quantization->float_modules.emplace_back(
          ModuleOf(TensorName(config, TensorKind::kRouter, layer)));
  }
  return config;
}

// Of the embedding and the output matrix.
DType EmbeddingDType(const TensorView& source, const QuantizeTarget& target) {
  if (!target.is_gguf()) return IsQuantized(source.dtype) ? DType::kF16 : source.dtype;
  const bool has_gguf_blocks = IsQuantized(source.dtype) && Info(source.dtype).gguf_type >= 0;
  if (has_gguf_blocks) return source.dtype;
  return source.shape[1] % Info(DType::kQ8_0).block_elements == 0 ? DType::kQ8_0 : DType::kF16;
}

// What a budget may choose beside the target's own format, smallest first; floats come after them.
std::span<const DType> LargerFormats(DType dtype) {
  static constexpr DType kOfInt4[] = {DType::kInt8}, kOfQ4_0[] = {DType::kQ5_0, DType::kQ8_0},
                         kOfQ4_K[] = {DType::kQ6_K, DType::kQ8_0}, kOfQ6_K[] = {DType::kQ8_0};
  switch (dtype) {
    case DType::kInt4G32:
    case DType::kInt4G128:
      return kOfInt4;
    case DType::kQ4_0:
      return kOfQ4_0;
    case DType::kQ4_K:
      return kOfQ4_K;
    case DType::kQ6_K:
      return kOfQ6_K;
    default:
      return {};
  }
}

bool IsLinear(TensorKind kind) { return std::ranges::count(kLinears, kind) > 0; }

LinearInput InputOf(TensorKind linear) {
  for (const LinearInput input : kLinearInputs) {
    if (std::ranges::count(LinearsOf(input), linear) > 0) return input;
  }
  CHECK(false, "no linear");
  return LinearInput::kAttention;
}

// What a token that is decoded reads of a tensor of so many bytes; of experts the share that it takes.
// Vectors are too small to count.
uint64_t BytesReadByToken(const ModelConfig& config, const TensorRequirement& tensor, uint64_t bytes) {
  if (IsVector(tensor.kind)) return 0;
  if (tensor.kind == TensorKind::kEmbedding) return config.tied_embeddings ? bytes : 0;
  const bool is_of_expert = config.experts > 0 && IsPerLayer(tensor.kind) && IsPerExpert(tensor.kind);
  return is_of_expert ? bytes * config.experts_per_token / config.experts : bytes;
}

// Some of the sequences, of `tokens` together at most.
std::vector<std::vector<TokenId>> Sample(const std::vector<std::vector<TokenId>>& sequences, size_t tokens,
                                         uint64_t seed) {
  std::vector<std::vector<TokenId>> out;
  for (const size_t i : ShuffledIndices(sequences.size(), seed)) {
    if (tokens == 0) break;
    out.push_back(sequences[i]);
    out.back().resize(std::min(out.back().size(), tokens));
    tokens -= out.back().size();
  }
  return out;
}

class Quantization final : public ModelRewriter {
 public:
  Quantization(const QuantizeRequest& request, ModelFiles files, ModelConfig config)
      : ModelRewriter(request, "quantize", std::move(files), std::move(config)), quantize_(request) {}

  // Of the output, without a budget. Instead of Run.
  StatusOr<uint64_t> StoredBytes() {
    RETURN_IF_ERROR(ListFormats());
    ASSIGN_OR_RETURN(const ModelToWrite plan, Plan());
    ASSIGN_OR_RETURN(const std::vector<uint64_t> sizes, StoredSizes(plan));
    return std::accumulate(sizes.begin(), sizes.end(), uint64_t{0});
  }

  // After Run.
  MixtureReport Mixture() const {
    if (!is_mixed()) return {};
    const uint64_t bytes = choice_.bytes + other_bytes_;
    const size_t floats = candidates_[0].size() - 1;
    return {.bytes = bytes,
            .faster = quantize_.budget.faster > 0 ? Faster(bytes) : 0,
            .predicted_divergence = choice_.loss,
            .is_all_floats = std::ranges::all_of(choice_.chosen, [&](size_t i) { return i == floats; })};
  }

 private:
  using LayerFormats = SensitivityMeter::LayerFormats;

  Status Check() override {
    const QuantizeMethod& method = quantize_.method;
    if (!method.passes_errors_on && (quantize_.act_order || quantize_.damping != kDefaultDamping))
      return InvalidArgument("--method ", method.name,
                             " has neither --damping nor --act-order; they are of gptq and awq-gptq");
    if (quantize_.target.is_fp8 && method.needs_calibration())
      return InvalidArgument("--to fp8 rounds each weight to the nearest: --method rtn, without --imatrix");
    if (!is_calibrated() && method.needs_calibration())
      return InvalidArgument("--method ", method.name, method.name == "rtn" ? " with --imatrix" : "",
                             ": needs calibration text (--calibration)");
    RETURN_IF_ERROR(CheckBudget());
    RETURN_IF_ERROR(ListFormats());
    RETURN_IF_ERROR(Plan().status());
    return is_mixed() ? WeighFormats() : Status();
  }

  bool is_mixed() const { return quantize_.budget.is_set(); }

  Status CheckBudget() const {
    const QuantizeBudget& budget = quantize_.budget;
    if (!is_mixed()) {
      if (budget.tokens == QuantizeBudget().tokens) return Status();
      return InvalidArgument("--sensitivity-tokens needs --fit or --faster");
    }
    if (!(budget.faster >= 0 && std::isfinite(budget.faster)))
      return InvalidArgument("--faster: ", budget.faster, " is not above 0");
    if (budget.bytes > 0 && budget.faster > 0)
      return InvalidArgument("--fit and --faster are two budgets; give one");
    if (quantize_.target.is_fp8) return InvalidArgument("--to fp8 has no mixture for --fit and --faster");
    if (budget.tokens == 0) return InvalidArgument("--sensitivity-tokens: 0 is not at least 1");
    if (!is_calibrated())
      return InvalidArgument(budget.bytes > 0 ? "--fit" : "--faster",
                             " needs calibration text (--calibration)");
    return Status();
  }

  Json Settings() const override {
    Json json = {{"target", std::string(quantize_.target.name)},
                 {"method", std::string(quantize_.method.name)},
                 {"searches_levels", quantize_.method.searches_levels}};
    if (is_calibrated() && quantize_.method.passes_errors_on) {
      json["damping"] = quantize_.damping;
      json["act_order"] = quantize_.act_order;
    }
    if (quantize_.method.scales == QuantizeMethod::Scales::kAwq) json["awq_revision"] = kAwqRevision;
    const QuantizeBudget& budget = quantize_.budget;
    if (is_mixed()) {
      json["budget"] = {{"sensitivity_tokens", budget.tokens}};
      if (budget.bytes > 0) json["budget"]["bytes"] = budget.bytes;
      if (budget.faster > 0) json["budget"]["faster"] = budget.faster;
    }
    return json;
  }

  // candidates_: the target's format, and with a budget larger ones and floats.
  Status ListFormats() {
    std::vector<DType> dtypes = {quantize_.target.dtype};
    if (is_mixed()) std::ranges::copy(LargerFormats(quantize_.target.dtype), std::back_inserter(dtypes));
    for (uint32_t layer = 0; layer < config_.layers; ++layer) {
      std::vector<LayerFormats>& candidates = candidates_.emplace_back();
      for (const DType dtype : dtypes) {
        ASSIGN_OR_RETURN(LayerFormats formats, FormatsOf(layer, dtype));
        candidates.push_back(std::move(formats));
      }
      if (is_mixed()) candidates.push_back(FloatsOf(layer));
      formats_.push_back(candidates[0]);
    }
    return Status();
  }

  StatusOr<LayerFormats> FormatsOf(uint32_t layer, DType dtype) const {
    LayerFormats formats;
    for (const TensorKind linear : kLinears) {
      const uint64_t columns = TensorShape(config_, linear, layer)[1];
      if (quantize_.target.is_fp8) {
        formats.push_back({.dtype = dtype, .is_fp8 = true});
        continue;
      }
      auto format = LinearFormat::Create(WithWholeBlocks(dtype, columns), quantize_.target.group, columns);
      if (!format.ok())
        return Annotate(format.status(),
                        Concat("--to ", quantize_.target.name, ": ", TensorName(config_, linear, layer)));
      formats.push_back(*std::move(format));
    }
    return formats;
  }

  // As the linears are, or F16.
  LayerFormats FloatsOf(uint32_t layer) const {
    LayerFormats formats;
    for (const TensorKind linear : kLinears) {
      DType dtype = FloatOf(layer, {linear});
      for (uint32_t expert = 1; IsPerExpert(linear) && expert < files_.config.experts; ++expert) {
        if (FloatOf(layer, {linear, expert}) != dtype) dtype = DType::kF32;  // holds all
      }
      formats.push_back({.dtype = dtype});
    }
    return formats;
  }

  DType FloatOf(uint32_t layer, const LayerTensor& tensor) const {
    const auto source = files_.weights->Find(TensorName(files_.config, tensor.kind, layer, tensor.expert));
    const bool is_float = source.ok() && !IsQuantized(source->dtype);  // OpenModel found it
    return is_float ? source->dtype : DType::kF16;
  }

  // options_: what each candidate costs the budget; and limit_. An error where the smallest are past it.
  Status WeighFormats() {
    const auto tensors = RequiredTensors(config_);
    options_.assign(config_.layers * kInputs, std::vector<FormatOption>(candidates_[0].size()));
    for (size_t i = 0; i < candidates_[0].size(); ++i) {
      for (uint32_t layer = 0; layer < config_.layers; ++layer) formats_[layer] = candidates_[layer][i];
      ASSIGN_OR_RETURN(const std::vector<uint64_t> costs, Costs());
      other_bytes_ = 0;
      for (size_t k = 0; k < tensors.size(); ++k) {
        const TensorRequirement& tensor = tensors[k];
        const bool is_linear = IsLinear(tensor.kind);
        (is_linear ? options_[PartOf(tensor.layer, InputOf(tensor.kind))][i].bytes : other_bytes_) +=
            costs[k];
      }
    }
    for (uint32_t layer = 0; layer < config_.layers; ++layer) formats_[layer] = candidates_[layer][0];
    return SetLimit();
  }

  static size_t PartOf(uint32_t layer, LinearInput input) {
    return layer * kInputs + static_cast<size_t>(input);
  }

  // Of each tensor of the output, in the formats that linears have now.
  StatusOr<std::vector<uint64_t>> Costs() const {
    ASSIGN_OR_RETURN(const ModelToWrite plan, Plan());
    if (quantize_.budget.bytes > 0) return StoredSizes(plan);
    std::vector<uint64_t> costs;
    for (const TensorRequirement& tensor : RequiredTensors(config_)) {
      const uint64_t bytes =
          IsVector(tensor.kind) ? 0 : MatrixBytes(DTypeOf({tensor.kind}, tensor.layer), tensor.shape);
      costs.push_back(BytesReadByToken(config_, tensor, bytes));
    }
    return costs;
  }

  Status SetLimit() {
    const QuantizeBudget& budget = quantize_.budget;
    const uint64_t smallest = other_bytes_ + SmallestBytes(options_);
    if (budget.bytes > 0) {
      if (smallest > budget.bytes)
        return InvalidArgument("--fit: ", budget.bytes, " bytes; the smallest that --to ",
                               quantize_.target.name, " makes of this model is ", smallest);
      limit_ = budget.bytes - other_bytes_;
      return Status();
    }
    uint64_t& now = bytes_now_;
    for (const TensorRequirement& tensor : RequiredTensors(files_.config)) {
      const auto view = files_.weights->Find(tensor.name);
      if (!view.ok()) continue;  // OpenModel found all
      now +=
          BytesReadByToken(files_.config, tensor,
                           view->bytes + (view->row_scales != nullptr ? sizeof(float) * view->shape[0] : 0));
    }
    const double limit = static_cast<double>(now) / (1 + budget.faster);
    if (smallest >= now)
      return InvalidArgument("--faster: with --to ", quantize_.target.name, " a token reads ", smallest,
                             " bytes of weights at least, and ", now,
                             " of this model: what comes out cannot be faster than the source");
    if (static_cast<double>(smallest) > limit)
      return InvalidArgument("--faster: ", 100 * budget.faster, "%; with --to ", quantize_.target.name,
                             " a token reads ", smallest, " bytes of weights at least, and ", now,
                             " of this model: at most ",
                             FormatFixed(std::floor(1000 * Faster(smallest)) / 10, 1), "% faster");
    limit_ = static_cast<uint64_t>(limit) - other_bytes_;
    return Status();
  }

  // Than the model that is read.
  double Faster(uint64_t bytes) const {
    return static_cast<double>(bytes_now_) / static_cast<double>(bytes) - 1;
  }

  // With a budget: chooses formats_.
  Status Prepare(const Journal& journal) override {
    if (!is_mixed()) return Status();
    ASSIGN_OR_RETURN(const std::vector<LayerSensitivity> sensitivities, Sensitivities(journal));
    for (uint32_t layer = 0; layer < config_.layers; ++layer) {
      for (const LinearInput input : kLinearInputs) {
        std::vector<FormatOption>& options = options_[PartOf(layer, input)];
        for (size_t i = 0; i < options.size(); ++i) options[i].loss = sensitivities[layer].LossOf(input, i);
      }
    }
    ASSIGN_OR_RETURN(choice_, ChooseFormats(options_, limit_));
    for (uint32_t layer = 0; layer < config_.layers; ++layer) {
      for (const TensorKind linear : kLinears) {
        const size_t chosen = choice_.chosen[PartOf(layer, InputOf(linear))];
        formats_[layer][PlaceOf(linear)] = candidates_[layer][chosen][PlaceOf(linear)];
      }
    }
    if (!quantize_.target.is_gguf()) SetQuantization();
    return Status();
  }

  // Those of an earlier run, and what is missing.
  StatusOr<std::vector<LayerSensitivity>> Sensitivities(const Journal& journal) {
    const size_t formats = candidates_[0].size();
    const auto part_name = [](size_t layer) { return Concat("sensitivity-", layer); };
    std::vector<LayerSensitivity> out;
    while (out.size() < config_.layers) {
      const auto part = journal.Find(part_name(out.size()));
      if (!part.ok()) break;
      ASSIGN_OR_RETURN(out.emplace_back(), SensitivityFromText(AsText(part->bytes()), formats));
    }
    if (out.size() == config_.layers) return out;

    const auto sequences = Sample(set_.sequences, quantize_.budget.tokens, request_.calibration.seed);
    ASSIGN_OR_RETURN(const auto runner, LayerRunner::Create(config_, sequences, CpuOps(), pool_));
    ASSIGN_OR_RETURN(std::vector<float> norm, FinalNorm());
    ASSIGN_OR_RETURN(const TensorView output,
                     Source(config_.tied_embeddings ? TensorKind::kEmbedding : TensorKind::kOutput));
    ASSIGN_OR_RETURN(const HeldRows held, HeldRows::Hold(output, pool_));
    const OutputDivergence divergence(std::move(norm), config_.norm_epsilon, config_.logit_softcap,
                                      held.matrix(), CpuOps(), pool_);
    SensitivityMeter meter({config_, [this](uint32_t layer) { return LoadSource(layer); }}, *runner,
                           divergence, pool_, request_.is_cancelled);
    ASSIGN_OR_RETURN(HiddenStates hidden, Embed(journal, sequences));
    RETURN_IF_ERROR(meter.Begin(std::move(hidden)));
    for (size_t layer = 0; layer < out.size(); ++layer) RETURN_IF_ERROR(meter.Skip());
    while (out.size() < config_.layers) {
      const size_t layer = out.size();
      ASSIGN_OR_RETURN(const LayerSensitivity measured, meter.Measure(candidates_[layer]));
      const std::string text = SensitivityToText(measured);
      RETURN_IF_ERROR(journal.Save(part_name(layer), std::as_bytes(std::span(text))));
      ASSIGN_OR_RETURN(out.emplace_back(), SensitivityFromText(text, formats));  // what another run reads
      RETURN_IF_ERROR(quantize_.on_measured(static_cast<uint32_t>(layer), config_.layers));
    }
    return out;
  }

  // What config.json says of formats_.
  void SetQuantization() {
    std::vector<std::string> int4, int8, floats;
    for (const TensorRequirement& tensor : RequiredTensors(config_)) {
      if (!IsPerLayer(tensor.kind) || IsVector(tensor.kind)) continue;
      const LinearFormat format =
          IsLinear(tensor.kind) ? FormatOf(tensor.kind, tensor.layer) : LinearFormat{};  // the router: floats
      std::vector<std::string>& modules = format.dtype == DType::kInt8 ? int8 : int4;
      (format.blocks ? modules : floats).emplace_back(ModuleOf(tensor.name));
    }
    if (int4.empty() && int8.empty()) {
      config_.quantization.reset();
      return;
    }
    if (int4.empty()) config_.quantization = Int8Rows();
    config_.quantization->float_modules = std::move(floats);
    config_.quantization->has_int8_too = !int4.empty() && !int8.empty();
    if (!config_.quantization->has_int8_too) return;
    config_.quantization->int4_modules = std::move(int4);
    config_.quantization->int8_modules = std::move(int8);
  }

  void AddToReport(Json& json) const override {
    if (!is_mixed()) return;
    Json parts = Json::array();
    for (uint32_t layer = 0; layer < config_.layers; ++layer) {
      for (const LinearInput input : kLinearInputs) parts.push_back(PartReport(layer, input));
    }
    json["mixture"] = {{"limit_bytes", limit_ + other_bytes_},
                       {"bytes", choice_.bytes + other_bytes_},
                       {"predicted_divergence", choice_.loss},
                       {"is_best_for_its_bytes", choice_.is_optimal},
                       {"most_that_a_better_choice_saves", choice_.passed_over},
                       {"parts", parts}};
  }

  Json PartReport(uint32_t layer, LinearInput input) const {
    const size_t part = PartOf(layer, input), place = PlaceOf(LinearsOf(input)[0]);
    const auto name = [&](size_t candidate) {
      return FormatName(candidates_[layer][candidate][place].dtype, quantize_.target.group);
    };
    Json linears = Json::array(), options = Json::array();
    for (const TensorKind linear : LinearsOf(input))
      linears.push_back(NameOfAllExperts(config_, linear, layer));
    for (size_t i = 0; i < options_[part].size(); ++i) {
      options.push_back(
          {{"dtype", name(i)}, {"bytes", options_[part][i].bytes}, {"divergence", options_[part][i].loss}});
    }
    return {{"linears", linears}, {"chosen", name(choice_.chosen[part])}, {"options", options}};
  }

  DType DTypeOf(const LayerTensor& tensor, uint32_t layer) const override {
    if (tensor.kind == TensorKind::kRouter) return RouterDType(layer);
    if (IsPerLayer(tensor.kind)) return FormatOf(tensor.kind, layer).dtype;
    const auto source = Source(tensor.kind);
    return source.ok() ? EmbeddingDType(*source, quantize_.target) : DType::kF32;  // OpenModel found it
  }

  const LinearFormat& FormatOf(TensorKind linear, uint32_t layer) const {
    return formats_[layer][PlaceOf(linear)];
  }

  WrittenMatrix RewriteMatrix(const FloatMatrix& source, const LayerTensor& tensor, uint32_t layer) override {
    return WriteNearest(source, FormatOf(tensor.kind, layer), /*importance=*/{}, pool_);
  }

  StatusOr<RewrittenLayer> Rewrite(FloatLayer source, uint32_t layer, HiddenStates& hidden) override {
    const LayerQuantizer quantizer(config_, formats_[layer],
                                   {.method = quantize_.method,
                                    .damping = quantize_.damping,
                                    .act_order = quantize_.act_order,
                                    .is_cancelled = quantize_.is_cancelled},
                                   *runner_, pool_);
    return quantizer.Quantize(std::move(source), layer, hidden);
  }

  const QuantizeRequest& quantize_;
  // Of each layer; its experts are alike.
  std::vector<std::vector<LayerFormats>> candidates_;  // smallest first
  std::vector<LayerFormats> formats_;                  // what is written

  // With a budget:
  std::vector<std::vector<FormatOption>> options_;  // by PartOf, of each candidate
  uint64_t other_bytes_ = 0, limit_ = 0;            // of what is no part; of all parts
  uint64_t bytes_now_ = 0;                          // with `faster`: that a token reads of the model
  FormatChoice choice_;
};

}  // namespace

StatusOr<QuantizeReport> Quantize(const QuantizeRequest& request) {
  ASSIGN_OR_RETURN(ModelFiles files, OpenModel(request.model));
  ASSIGN_OR_RETURN(ModelConfig config, TargetConfig(files.config, request.target, request.budget.is_set()));
  Quantization quantization(request, std::move(files), std::move(config));
  ASSIGN_OR_RETURN(RewriteReport report, quantization.Run());
  return QuantizeReport{std::move(report), quantization.Mixture()};
}

StatusOr<uint64_t> QuantizedBytes(const std::string& model, const QuantizeTarget& target,
                                  const QuantizeMethod& method) {
  QuantizeRequest request;
  request.model = model;
  request.target = target;
  request.method = method;
  ASSIGN_OR_RETURN(ModelFiles files, OpenModel(model));
  ASSIGN_OR_RETURN(ModelConfig config, TargetConfig(files.config, target, /*is_mixed=*/false));
  return Quantization(request, std::move(files), std::move(config)).StoredBytes();
}

}  // namespace terrace
