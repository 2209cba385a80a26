// Gives the Hessian of each input of a layer to whoever changes the layer's linears: one at a time, when all
// calibration tokens were seen and before the linears are applied.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "tools/optimize/hessian.h"
#include "tools/optimize/layer_runner.h"
#include "worker/formats/tensor_names.h"

namespace terrace {

class HessianObserver : public LayerObserver {
 public:
  // Of layer `layer` of a model; `config` and `pool` outlive the object.
  HessianObserver(const ModelConfig& config, uint32_t layer, ThreadPool& pool)
      : config_(config), layer_(layer), pool_(pool) {}

  Status OnInputs(LayerInput input, std::span<const float> x, size_t tokens) final;
  // DATA_LOSS, reason nonfinite, where an input is infinite or not a number.
  Status OnReady(LayerInput input) final;

  // That went to each of the experts that were shown.
  const std::vector<uint64_t>& expert_tokens() const { return expert_tokens_; }

 protected:
  virtual Status Use(LayerInput input, const Hessian& hessian) = 0;
  // Instead, of an expert to which fewer tokens of the calibration text went than its linear has inputs: what
  // fits these would not fit others. Null: none went to it.
  virtual Status UseFew(LayerInput input, const Hessian* hessian) {
    return hessian != nullptr ? Use(input, *hessian) : Status();
  }
  virtual bool Wants(LinearInput) const { return true; }  // an input that is not wanted costs nothing

  // For messages: of the linear, and of the first one of an input.
  std::string NameOf(TensorKind linear, uint32_t expert) const {
    return TensorName(config_, linear, layer_, expert);
  }
  std::string NameOf(LayerInput input) const { return NameOf(LinearsOf(input.kind)[0], input.expert); }

  const ModelConfig& config_;
  const uint32_t layer_;
  ThreadPool& pool_;

 private:
  std::optional<Hessian> hessian_;
  std::vector<uint64_t> expert_tokens_;
};

}  // namespace terrace
