// Gives the Hessian of each input of a layer to whoever changes the layer's linears: one at a time, when all
// calibration tokens were seen and before the linears are applied.
#pragma once

#include <optional>
#include <span>

#include "base/parallel_for.h"
#include "base/status.h"
#include "tools/optimize/hessian.h"
#include "tools/optimize/layer_runner.h"

namespace terrace {

class HessianObserver : public LayerObserver {
 public:
  // `layer` is for messages; `pool` outlives the object.
  HessianObserver(uint32_t layer, ThreadPool& pool) : layer_(layer), pool_(pool) {}

  Status OnInputs(LinearInput input, std::span<const float> x, size_t tokens) final;
  // DATA_LOSS, reason nonfinite, where an input is infinite or not a number.
  Status OnReady(LinearInput input) final;

 protected:
  virtual Status Use(LinearInput input, const Hessian& hessian) = 0;
  virtual bool Wants(LinearInput) const { return true; }  // an input that is not wanted costs nothing

  const uint32_t layer_;
  ThreadPool& pool_;

 private:
  std::optional<Hessian> hessian_;
};

}  // namespace terrace
