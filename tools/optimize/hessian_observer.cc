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
  const bool is_of_expert = config_.experts > 0 && IsPerExpert(input.kind);
  if (!hessian_) {
    CHECK(is_of_expert, "an input without rows");
    return UseFew(input, nullptr);
  }
  if (const auto bad = hessian_->FirstNonFinite()) {
    return WithReason(DataLoss("what goes into ", NameOf(input), " is infinite or not a number at input ",
                               *bad, ", for some token of the calibration text"),
                      "nonfinite");
  }
  const bool is_few = is_of_expert && hessian_->tokens() < hessian_->inputs();
  const Status used = is_few ? UseFew(input, &*hessian_) : Use(input, *hessian_);
  hessian_.reset();
  return used;
}

}  // namespace terrace
