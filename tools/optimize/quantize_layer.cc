#include "tools/optimize/quantize_layer.h"

#include <algorithm>
#include <optional>

#include "tools/optimize/channel_scales.h"
#include "tools/optimize/gptq.h"
#include "tools/optimize/hessian_observer.h"
#include "tools/optimize/output_rounding.h"
#include "tools/optimize/weight_pruning.h"

namespace terrace {

// Scales for each input of a layer that can have some, which is not changed while it runs.
class LayerQuantizer::ScaleChooser final : public HessianObserver {
 public:
  ScaleChooser(const LayerQuantizer& quantizer, const FloatLayer& layer, uint32_t index)
      : HessianObserver(quantizer.config_, index, quantizer.pool_),
        quantizer_(quantizer),
        layer_values_(layer) {}

  bool changes_linears() const override { return false; }

  void Fold(FloatLayer& layer) const {
    for (const auto& [input, scales] : scales_) FoldScales(quantizer_.config_, input, scales, layer);
  }

 private:
  // The router would see scales of what goes into experts.
  bool Wants(LinearInput input) const override { return config_.experts == 0 || input != LinearInput::kFfn; }
  Status Use(LayerInput input, const Hessian& hessian) override {
    if (quantizer_.options_.is_cancelled && quantizer_.options_.is_cancelled())
      return Cancelled("interrupted");
    const auto& blocks = quantizer_.formats_[PlaceOf(LinearsOf(input.kind)[0])].blocks;
    if (!blocks) return Status();  // floats gain nothing by scales
    scales_.emplace_back(input,
                         quantizer_.options_.method.scales == QuantizeMethod::Scales::kAwq
                             ? AwqScales(quantizer_.config_, layer_values_, input, hessian, *blocks, pool_)
                             : SmoothScales(quantizer_.config_, layer_values_, input, hessian));
    return Status();
  }

  Status UseFew(LayerInput, const Hessian*) override { return Status(); }

  const LayerQuantizer& quantizer_;
  const FloatLayer& layer_values_;
  std::vector<std::pair<LayerInput, std::vector<float>>> scales_;
};

// Rounds the linears of an input as soon as all of it was seen. The layer then has what they became.
class LayerQuantizer::Rounder final : public HessianObserver {
 public:
  Rounder(const LayerQuantizer& quantizer, FloatLayer& layer, uint32_t index, RewrittenLayer& result)
      : HessianObserver(quantizer.config_, index, quantizer.pool_),
        quantizer_(quantizer),
        values_(layer),
        result_(result) {}

 private:
  Status Use(LayerInput input, const Hessian& hessian) override {
    const Options& options = quantizer_.options_;
    std::optional<InverseHessian> inverse;
    std::vector<float> importance;
    if (options.method.passes_errors_on && HasBlocks(input.kind)) {
      auto inverted = InvertHessian(hessian, options.damping, options.act_order);
      if (!inverted.ok()) return Annotate(inverted.status(), NameOf(input));
      inverse = *std::move(inverted);
    } else if (options.method.searches_levels) {
      importance = hessian.Diagonal();
    }
    for (const TensorKind linear : LinearsOf(input.kind))
      RETURN_IF_ERROR(Round({linear, input.expert}, hessian, inverse ? &*inverse : nullptr, importance));
    return Status();
  }

  // As rtn does it without text.
  Status UseFew(LayerInput input, const Hessian* hessian) override {
    for (const TensorKind linear : LinearsOf(input.kind)) {
      if (quantizer_.options_.is_cancelled && quantizer_.options_.is_cancelled())
        return Cancelled("interrupted");
      const FloatMatrix& matrix = values_.matrix(linear, input.expert);
      WrittenMatrix written =
          WriteNearest(matrix, quantizer_.formats_[PlaceOf(linear)], /*importance=*/{}, pool_);
      const double error = hessian != nullptr ? RelativeOutputError(matrix, written.values, *hessian, pool_)
                                              : RelativeWeightError(matrix, written.values);
      RETURN_IF_ERROR(Put({linear, input.expert}, std::move(written), error));
    }
    return Status();
  }

  bool HasBlocks(LinearInput input) const {
    return std::ranges::any_of(LinearsOf(input), [&](TensorKind linear) {
      return quantizer_.formats_[PlaceOf(linear)].blocks.has_value();
    });
  }

  Status Round(const LayerTensor& linear, const Hessian& hessian, const InverseHessian* inverse,
               std::span<const float> importance) {
    const Options& options = quantizer_.options_;
    if (options.is_cancelled && options.is_cancelled()) return Cancelled("interrupted");
    const FloatMatrix& matrix = values_.matrix(linear.kind, linear.expert);
    const LinearFormat& format = quantizer_.formats_[PlaceOf(linear.kind)];
    // Kernels skip the zeros of INT8 that is 2:4. Rounding alone keeps them, as scales do.
    const bool keeps_zeros = format.dtype == DType::kInt8 && HasPattern(matrix, {.kept = 2, .of = 4});
    WrittenMatrix written;
    if (format.blocks && inverse != nullptr) {
      const QuantizedMatrix rounded =
          Gptq(matrix, *format.blocks, *inverse,
               {.searches_levels = options.method.searches_levels, .keeps_zeros = keeps_zeros}, pool_);
      written = {rounded.Bytes(), rounded.ToFloat(pool_)};
    } else if (format.blocks && options.method.scales == QuantizeMethod::Scales::kAwq) {
      const QuantizedMatrix rounded = RoundForOutputs(matrix, *format.blocks, hessian, pool_);
      written = {rounded.Bytes(), rounded.ToFloat(pool_)};
    } else {
      written = WriteNearest(matrix, format, importance, pool_);
    }
    const double error = RelativeOutputError(matrix, written.values, hessian, pool_);
    return Put(linear, std::move(written), error);
  }

  Status Put(const LayerTensor& linear, WrittenMatrix written, double error) {
    RETURN_IF_ERROR(CheckHeld(written.values, quantizer_.formats_[PlaceOf(linear.kind)].dtype,
                              NameOf(linear.kind, linear.expert)));  // a scale may pass F16
    result_.matrix(linear.kind, linear.expert) = {.bytes = std::move(written.bytes), .error = error};
    values_.matrix(linear.kind, linear.expert) = std::move(written.values);
    return Status();
  }

  const LayerQuantizer& quantizer_;
  FloatLayer& values_;
  RewrittenLayer& result_;
};

StatusOr<RewrittenLayer> LayerQuantizer::Quantize(FloatLayer layer, uint32_t index,
                                                  HiddenStates& hidden) const {
  if (options_.method.scales != QuantizeMethod::Scales::kNone) {
    ScaleChooser chooser(*this, layer, index);
    RETURN_IF_ERROR(runner_.Show(layer, hidden, chooser));
    chooser.Fold(layer);
  }
  RewrittenLayer result;
  static_cast<LayerVectors&>(result) = layer;
  Rounder rounder(*this, layer, index, result);
  RETURN_IF_ERROR(runner_.Run(layer, hidden, hidden, &rounder));
  result.expert_tokens = rounder.expert_tokens();
  return result;
}

}  // namespace terrace
