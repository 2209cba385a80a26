#include "tools/optimize/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/json.h"
#include "tools/optimize/hessian_observer.h"
#include "tools/optimize/model_rewriter.h"

namespace terrace {
namespace {

constexpr size_t kInputs = std::size(kLinearInputs);

bool IsLoss(const Json& json) {
  return json.is_number() && std::isfinite(json.get<double>()) && json.get<double>() >= 0;
}

// Of all experts.
void SwapLinears(LinearInput input, FloatLayer& a, FloatLayer& b) {
  const size_t count = IsPerExpert(input) ? std::max<size_t>(1, a.experts.size()) : 1;
  for (const TensorKind linear : LinearsOf(input)) {
    for (uint32_t expert = 0; expert < count; ++expert)
      std::swap(a.matrix(linear, expert), b.matrix(linear, expert));
  }
}

}  // namespace

double LayerSensitivity::LossOf(LinearInput input, size_t format) const {
  const size_t place = static_cast<size_t>(input);
  const double smallest = errors[place][0];
  return smallest > 0 ? divergences[place] * (errors[place][format] / smallest) : 0;
}

std::string SensitivityToText(const LayerSensitivity& sensitivity) {
  return ToJsonText(Json{{"divergences", sensitivity.divergences}, {"errors", sensitivity.errors}});
}

StatusOr<LayerSensitivity> SensitivityFromText(std::string_view text, size_t formats) {
  const Status error = WithReason(DataLoss("a part of the journal is no layer's sensitivity"), "truncated");
  const auto json = ParseJson(text);
  if (!json.ok() || !json->is_object() || !json->contains("divergences") || !json->contains("errors"))
    return error;
  const Json &divergences = json->at("divergences"), &errors = json->at("errors");
  if (!divergences.is_array() || divergences.size() != kInputs || !errors.is_array() ||
      errors.size() != kInputs)
    return error;
  LayerSensitivity out;
  for (size_t i = 0; i < kInputs; ++i) {
    if (!IsLoss(divergences[i]) || !errors[i].is_array() || errors[i].size() != formats) return error;
    out.divergences[i] = divergences[i].get<double>();
    for (const Json& each : errors[i]) {
      if (!IsLoss(each)) return error;
      out.errors[i].push_back(each.get<double>());
    }
  }
  return out;
}

// Rounds the linears of each input to every format, while the layer stays as it is.
class SensitivityMeter::Observer final : public HessianObserver {
 public:
  Observer(const ModelConfig& config, const FloatLayer& layer, std::span<const LayerFormats> formats,
           size_t tokens, LayerSensitivity& result, ThreadPool& pool)
      : HessianObserver(config, layer.number, pool),
        values_(layer),
        formats_(formats),
        tokens_(tokens),
        result_(result) {
    smallest_.experts.resize(layer.experts.size());
    for (std::vector<double>& errors : result_.errors) errors.assign(formats_.size(), 0);
  }

  bool changes_linears() const override { return false; }
  FloatLayer& smallest() { return smallest_; }

 private:
  Status Use(LayerInput input, const Hessian& hessian) override {
    std::vector<double>& errors = result_.errors[static_cast<size_t>(input.kind)];
    // An expert counts by the tokens that go to it.
    const double share = static_cast<double>(hessian.tokens()) / static_cast<double>(tokens_);
    for (const TensorKind linear : LinearsOf(input.kind)) {
      const FloatMatrix& matrix = values_.matrix(linear, input.expert);
      for (size_t i = 0; i < formats_.size(); ++i) {
        const LinearFormat& format = formats_[i][PlaceOf(linear)];
        FloatMatrix rounded = WriteNearest(matrix, format, {}, pool_).values;
        if (i == 0) RETURN_IF_ERROR(CheckHeld(rounded, format.dtype, NameOf(linear, input.expert)));
        const double error = RelativeOutputError(matrix, rounded, hessian, pool_);
        errors[i] += share * (error * error);
        if (i == 0) smallest_.matrix(linear, input.expert) = std::move(rounded);
      }
    }
    return Status();
  }

  // What no token goes to costs nothing, but one may when others are rounded.
  Status UseFew(LayerInput input, const Hessian* hessian) override {
    if (hessian != nullptr) return Use(input, *hessian);
    for (const TensorKind linear : LinearsOf(input.kind)) {
      const LinearFormat& format = formats_[0][PlaceOf(linear)];
      FloatMatrix& rounded = smallest_.matrix(linear, input.expert);
      rounded = WriteNearest(values_.matrix(linear, input.expert), format, {}, pool_).values;
      RETURN_IF_ERROR(CheckHeld(rounded, format.dtype, NameOf(linear, input.expert)));
    }
    return Status();
  }

  const FloatLayer& values_;
  const std::span<const LayerFormats> formats_;
  const size_t tokens_;  // of the text
  LayerSensitivity& result_;
  FloatLayer smallest_;  // its linears in the smallest format
};

StatusOr<FloatLayer> SensitivityMeter::Load(uint32_t layer) const {
  if (is_cancelled_ && is_cancelled_()) return Cancelled("interrupted");
  return model_.load(layer);
}

Status SensitivityMeter::Begin(HiddenStates hidden) {
  next_ = 0;
  hidden_ = std::move(hidden);
  ASSIGN_OR_RETURN(last_, hidden_->MakeAnother());
  for (uint32_t layer = 0; layer < model_.config.layers; ++layer) {
    ASSIGN_OR_RETURN(const FloatLayer values, Load(layer));
    RETURN_IF_ERROR(runner_.Run(values, layer == 0 ? *hidden_ : *last_, *last_, nullptr));
  }
  return Status();
}

Status SensitivityMeter::Skip() {
  ASSIGN_OR_RETURN(const FloatLayer values, Load(next_));
  ++next_;
  return runner_.Run(values, *hidden_, *hidden_, nullptr);
}

StatusOr<LayerSensitivity> SensitivityMeter::Measure(std::span<const LayerFormats> formats) {
  ASSIGN_OR_RETURN(FloatLayer values, Load(next_));
  LayerSensitivity result;
  ASSIGN_OR_RETURN(HiddenStates after, hidden_->MakeAnother());
  Observer observer(model_.config, values, formats, runner_.tokens(), result, pool_);
  RETURN_IF_ERROR(runner_.Run(values, *hidden_, after, &observer));

  std::vector<HiddenStates> streams;
  for (size_t i = 0; i < kInputs; ++i) {
    ASSIGN_OR_RETURN(HiddenStates stream, hidden_->MakeAnother());
    SwapLinears(kLinearInputs[i], values, observer.smallest());
    RETURN_IF_ERROR(runner_.Run(values, *hidden_, stream, nullptr));
    SwapLinears(kLinearInputs[i], values, observer.smallest());
    streams.push_back(std::move(stream));
  }
  values = observer.smallest() = {};  // their memory
  for (uint32_t layer = next_ + 1; layer < model_.config.layers; ++layer) {
    ASSIGN_OR_RETURN(const FloatLayer later, Load(layer));
    for (HiddenStates& stream : streams) RETURN_IF_ERROR(runner_.Run(later, stream, stream, nullptr));
  }
  ASSIGN_OR_RETURN(const std::vector<double> divergences, output_.Measure(*last_, streams));
  for (size_t i = 0; i < kInputs; ++i) result.divergences[i] = divergences[i];
  hidden_ = std::move(after);
  ++next_;
  return result;
}

}  // namespace terrace
