// How much a model's answers suffer when linears of one layer are rounded: what a choice of formats weighs
// against bytes. For the linears of each input of a layer (query, key and value; output; gate and up; down)
// it is measured
//   - how far the model's next-token distributions move, as KL(as it is || rounded) over calibration tokens,
//     when these linears alone are in the smallest format that may be chosen, and all others as they are;
//   - the squared error of their outputs in each format, relative to the outputs.
// With experts the linears of all of them are one choice, and the errors of each count by the share of the
// tokens that go to it.
// The divergence grows with the square of a small error, and errors of different layers add up (Malinovskii
// et al., "Pushing the Limits of Large Language Model Quantization via the Linearity Theorem", NAACL 2025,
// arXiv 2411.17525): so LossOf scales the one by the other, and losses are summed. Weights are rounded to
// plain nearest levels here, whatever method the model is then quantized with.
//
// Work: about 2 * layers passes of the model over the tokens. The same bits for any number of threads, on one
// kind of processor.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "tools/optimize/float_layer.h"
#include "tools/optimize/hidden_states.h"
#include "tools/optimize/layer_runner.h"
#include "tools/optimize/output_divergence.h"
#include "tools/optimize/quantized_matrix.h"

namespace terrace {

struct LayerSensitivity {
  // By place in kLinearInputs.
  std::array<double, std::size(kLinearInputs)> divergences = {};  // nats a token, of the smallest format
  std::array<std::vector<double>, std::size(kLinearInputs)> errors = {};  // of each format, sums over linears

  // Nats a token that the linears of `input` lose in a format, by the model above.
  double LossOf(LinearInput input, size_t format) const;
};

// As text, with all bits of the numbers, and back; `formats` is how many there are. DATA_LOSS, reason
// truncated, for another text.
std::string SensitivityToText(const LayerSensitivity& sensitivity);
StatusOr<LayerSensitivity> SensitivityFromText(std::string_view text, size_t formats);

// Walks through a model's layers. One thread at a time.
class SensitivityMeter {
 public:
  // A layer's formats: of its linears, in the order of kLinears.
  using LayerFormats = std::vector<LinearFormat>;
  struct Model {
    const ModelConfig& config;  // outlives the meter
    std::function<StatusOr<FloatLayer>(uint32_t layer)> load;
  };
  // `runner`, `output` and `pool` outlive the object. `is_cancelled`, or null, is asked before each layer is
  // run: CANCELLED.
  SensitivityMeter(Model model, LayerRunner& runner, const OutputDivergence& output, ThreadPool& pool,
                   std::function<bool()> is_cancelled)
      : model_(std::move(model)),
        runner_(runner),
        output_(output),
        pool_(pool),
        is_cancelled_(std::move(is_cancelled)) {}

  // Before all else. `hidden` goes into the first layer. Takes its space seven times on the disk.
  Status Begin(HiddenStates hidden);
  // Of the next layer in `formats`, smallest first. DATA_LOSS, reason nonfinite, for activations that are
  // infinite or not a number and for weights that the smallest format cannot hold.
  StatusOr<LayerSensitivity> Measure(std::span<const LayerFormats> formats);
  // Past the next layer.
  Status Skip();

 private:
  class Observer;

  StatusOr<FloatLayer> Load(uint32_t layer) const;

  const Model model_;
  LayerRunner& runner_;
  const OutputDivergence& output_;
  ThreadPool& pool_;
  const std::function<bool()> is_cancelled_;
  uint32_t next_ = 0;
  // From Begin on:
  std::optional<HiddenStates> hidden_;  // goes into layer next_
  std::optional<HiddenStates> last_;    // what comes out of the last layer
};

}  // namespace terrace
