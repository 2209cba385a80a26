// Quantizes one layer by calibration text: the linears of each of its inputs in turn, each on what the
// quantized ones before it make. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "tools/optimize/float_layer.h"
#include "tools/optimize/hidden_states.h"
#include "tools/optimize/layer_runner.h"
#include "tools/optimize/model_rewriter.h"
#include "tools/optimize/quantized_matrix.h"
#include "worker/formats/model_config.h"

namespace terrace {

struct QuantizeMethod {
  enum class Scales : uint8_t { kNone, kAwq, kSmooth };
  std::string_view name;
  Scales scales = Scales::kNone;  // of the inputs of linears, before anything is rounded
  bool passes_errors_on = false;  // GPTQ; else each weight is rounded to the nearest level
  bool searches_levels = false;   // by what errors cost; else plain ones (min and max)

  bool needs_calibration() const { return scales != Scales::kNone || passes_errors_on || searches_levels; }
};

class LayerQuantizer {
 public:
  struct Options {
    QuantizeMethod method;
    double damping = kDefaultDamping;              // of the Hessian, times the mean of its diagonal
    bool act_order = false;                        // inputs in falling order of their size
    std::function<bool()> is_cancelled = nullptr;  // asked before each linear
  };
  // `formats` are of the linears, in the order of kLinears; they, `config`, `runner` and `pool` outlive the
  // object.
  LayerQuantizer(const ModelConfig& config, std::span<const LinearFormat> formats, Options options,
                 LayerRunner& runner, ThreadPool& pool)
      : config_(config), formats_(formats), options_(std::move(options)), runner_(runner), pool_(pool) {}

  // Layer `index` of the model. `hidden` goes into the layer and becomes what comes out of the quantized one.
  // CANCELLED, the errors of HessianObserver and InvertHessian, DATA_LOSS, reason nonfinite, for weights that
  // the format cannot hold.
  StatusOr<RewrittenLayer> Quantize(FloatLayer layer, uint32_t index, HiddenStates& hidden) const;

 private:
  class ScaleChooser;
  class Rounder;

  const ModelConfig& config_;
  const std::span<const LinearFormat> formats_;
  const Options options_;
  LayerRunner& runner_;
  ThreadPool& pool_;
};

}  // namespace terrace
