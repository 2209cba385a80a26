#include "tools/optimize/quantize.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace terrace {
namespace {

// The model as the output has it.
ModelConfig TargetConfig(ModelConfig config, const QuantizeTarget& target) {
  config.names = target.is_gguf() ? NameScheme::kGguf : NameScheme::kHuggingFace;
  config.rope_pairing = target.is_gguf() ? RopePairing::kNeighbours : RopePairing::kHalves;
  config.quantization.reset();
  if (target.dtype == DType::kInt8) {
    config.quantization = WeightQuantization{.bits = 8, .group = 0, .has_zero_points = false};
  } else if (!target.is_gguf()) {
    config.quantization = WeightQuantization{.bits = 4, .group = target.group, .has_zero_points = true};
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

class Quantization final : public ModelRewriter {
 public:
  Quantization(const QuantizeRequest& request, ModelFiles files, ModelConfig config)
      : ModelRewriter(request, "quantize", std::move(files), std::move(config)), quantize_(request) {}

 private:
  Status Check() override {
    const QuantizeMethod& method = quantize_.method;
    if (!method.passes_errors_on && (quantize_.act_order || quantize_.damping != kDefaultDamping))
      return InvalidArgument("--method ", method.name,
                             " has neither --damping nor --act-order; they are of gptq and awq-gptq");
    if (!is_calibrated() && method.needs_calibration())
      return InvalidArgument("--method ", method.name, method.name == "rtn" ? " with --imatrix" : "",
                             ": needs calibration text (--calibration)");
    RETURN_IF_ERROR(ChooseFormats());
    return Plan().status();
  }

  Json Settings() const override {
    Json json = {{"target", std::string(quantize_.target.name)},
                 {"method", std::string(quantize_.method.name)},
                 {"searches_levels", quantize_.method.searches_levels}};
    if (is_calibrated() && quantize_.method.passes_errors_on) {
      json["damping"] = quantize_.damping;
      json["act_order"] = quantize_.act_order;
    }
    return json;
  }

  Status ChooseFormats() {
    for (uint32_t layer = 0; layer < config_.layers; ++layer) {
      std::vector<RowFormat>& formats = formats_.emplace_back();
      for (const TensorKind linear : kLinears) {
        const Shape shape = TensorShape(config_, linear, layer);
        const auto format = RowFormat::Create(WithWholeBlocks(quantize_.target.dtype, shape[1]),
                                              quantize_.target.group, shape[1]);
        if (!format.ok())
          return Annotate(format.status(), Concat("--to ", quantize_.target.name, ": ",
                                                  TensorName(config_.names, linear, layer)));
        formats.push_back(*format);
      }
    }
    return Status();
  }

  DType DTypeOf(TensorKind kind, uint32_t layer) const override {
    if (IsPerLayer(kind)) return FormatOf(kind, layer).dtype();
    const auto source = Source(kind);
    return source.ok() ? EmbeddingDType(*source, quantize_.target) : DType::kF32;  // OpenModel found it
  }

  const RowFormat& FormatOf(TensorKind linear, uint32_t layer) const {
    return formats_[layer][static_cast<size_t>(std::ranges::find(kLinears, linear) - std::begin(kLinears))];
  }

  StatusOr<RewrittenLayer> Rewrite(FloatLayer source, uint32_t layer, std::vector<float>& hidden) override {
    const LayerQuantizer quantizer(config_, formats_[layer],
                                   {.method = quantize_.method,
                                    .damping = quantize_.damping,
                                    .act_order = quantize_.act_order,
                                    .is_cancelled = quantize_.is_cancelled},
                                   runner_.get(), pool_);
    return quantizer.Quantize(std::move(source), layer, hidden);
  }

  const QuantizeRequest& quantize_;
  std::vector<std::vector<RowFormat>> formats_;  // of the linears of each layer
};

}  // namespace

StatusOr<QuantizeReport> Quantize(const QuantizeRequest& request) {
  ASSIGN_OR_RETURN(ModelFiles files, OpenModel(request.model));
  ModelConfig config = TargetConfig(files.config, request.target);
  return Quantization(request, std::move(files), std::move(config)).Run();
}

}  // namespace terrace
