#include "tools/optimize/hessian_observer.h"

namespace terrace {

Status HessianObserver::OnInputs(LayerInput input, std::span<const float> x, size_t tokens) {
  if (!Wants(input.kind)) return Status();
  if (!hessian_) hessian_.emplace(x.size() / tokens);
  hessian_->Add(x, tokens, pool_);
  return Status();
}

Status HessianObserver::OnReady(LayerInput input) {
  if (!Wants(input.kind)) return Status();
  if (config_.experts > 0 && input.kind == LinearInput::kFfn)
    expert_tokens_.push_back(hessian_ ? hessian_->tokens() : 0);
  if (!hessian_) {
    CHECK(config_.experts > 0 && IsPerExpert(input.kind), "an input without rows");
    return UseUnseen(input);
  }
  if (const auto bad = hessian_->FirstNonFinite()) {
    return WithReason(DataLoss("what goes into ", NameOf(input), " is infinite or not a number at input ",
                               *bad, ", for some token of the calibration text"),
                      "nonfinite");
  }
  const Status used = Use(input, *hessian_);
  hessian_.reset();
  return used;
}

}  // namespace terrace
