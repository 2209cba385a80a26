#include "tools/optimize/hessian_observer.h"

#include "worker/formats/tensor_names.h"

namespace terrace {

Status HessianObserver::OnInputs(LinearInput input, std::span<const float> x, size_t tokens) {
  if (!Wants(input)) return Status();
  if (!hessian_) hessian_.emplace(x.size() / tokens);
  hessian_->Add(x, tokens, pool_);
  return Status();
}

Status HessianObserver::OnReady(LinearInput input) {
  if (!Wants(input)) return Status();
  CHECK(hessian_.has_value(), "an input without rows");
  if (const auto bad = hessian_->FirstNonFinite()) {
    const std::string name = TensorName(NameScheme::kHuggingFace, LinearsOf(input)[0], layer_);
    return WithReason(DataLoss("what goes into ", name, " is infinite or not a number at input ", *bad,
                               ", for some token of the calibration text"),
                      "nonfinite");
  }
  const Status used = Use(input, *hessian_);
  hessian_.reset();
  return used;
}

}  // namespace terrace
