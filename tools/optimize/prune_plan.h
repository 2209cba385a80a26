// What of a model goes when whole parts of it go: from what the parts do on calibration text. Pure.
//
//   feed-forward channels   by |activation|^2 |column of down|^2, what they add to the residual stream, over
//                           the size of the stream there: the least of all layers go, so that layers end with
//                           different widths
//   KV heads                with the query heads that share them: by the squares of what the group adds, the
//                           least of each layer go, as many in each
//   layers                  by how little they turn the residual stream: 1 - cosine of what goes in and what
//                           comes out (Men et al., "ShortGPT: Layers in Large Language Models are More
//                           Redundant Than You Expect", 2024)
//   channels of the residual stream, the same in every layer: by what their normalized values add to the
//                           linears that read them, |activation|^2 |column|^2 over that of all channels,
//                           summed over the norms of the model. The activations are those of Minitron
//                           (Muralidharan et al., "Compact Language Models via Pruning and Knowledge
//                           Distillation", 2024), the columns as for feed-forward channels. A norm divides by
//                           the root mean square of its input, which is another one over fewer channels: its
//                           gains are multiplied by the root of what the channels that stay have of the
//                           squares, over their share of the channels. (SliceGPT's rotation, Ashkboos et al.,
//                           2024, loses less at the same width, but moves gains out of the norms: tied
//                           embeddings would become two matrices.)
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "worker/formats/model_config.h"

namespace terrace {

// What goes.
struct Cut {
  double ffn_share = 0;   // of the feed-forward channels of the layers that stay
  uint32_t kv_heads = 0;  // of each layer
  uint32_t layers = 0;
  uint32_t hidden = 0;     // channels of the residual stream
  uint32_t multiple = 64;  // of which feed-forward widths are multiples, where those of the model are

  bool is_empty() const { return ffn_share == 0 && kv_heads == 0 && layers == 0 && hidden == 0; }
};

// Widths of the residual stream that a cut leaves are multiples of it: blocks of quantized formats and of 2:4
// matrices are this many columns.
inline constexpr uint32_t kHiddenMultiple = 32;

// INVALID_ARGUMENT with the flag's name, the number and the limit.
Status CheckCut(const Cut& cut, const ModelConfig& config);

// What a norm and the linears that read it make of each channel of the residual stream; each list adds up to
// 1, or is all 0 where nothing comes.
struct StreamUse {
  std::vector<double> energy = {};      // share of the stream's squares, the mean over tokens
  std::vector<double> importance = {};  // share of the squares that channels add to the linears' outputs
};

// `energy` as above; `gains` are the norm's, `column_squares` the sums over the linears that read it.
StreamUse UseOfStream(std::vector<double> energy, std::span<const float> gains,
                      std::span<const double> column_squares);

struct LayerImportance {
  double turned = 0;                                 // 1 - mean cosine
  std::vector<double> kv_heads = {}, channels = {};  // squares, over those of the residual stream
  StreamUse attention = {}, ffn = {};                // where channels of the stream go
};

struct ModelImportance {
  std::vector<LayerImportance> layers;
  StreamUse output = {};  // of the final norm and the output matrix, where channels of the stream go
};

struct LayerPlan {
  uint32_t layer = 0;                                  // of the model that is pruned
  std::vector<uint32_t> kv_heads = {}, channels = {};  // that stay, rising
  double attention_gain = 1, ffn_gain = 1;             // factors of the norms' gains
};

struct CutPlan {
  std::vector<uint32_t> hidden = {};   // channels of the residual stream that stay, rising
  double final_gain = 1;               // factor of the final norm's gains
  std::vector<LayerPlan> layers = {};  // that stay, in order

  bool is_empty() const { return layers.empty(); }
};

// `importance` is of `config`; the cut was checked.
CutPlan PlanCut(const Cut& cut, const ModelConfig& config, const ModelImportance& importance);

// The model that the plan leaves.
ModelConfig ConfigAfter(const ModelConfig& config, const CutPlan& plan);

// A plan as a journal keeps it. DATA_LOSS for what PlanToText did not make of a plan for `config`.
std::string PlanToText(const CutPlan& plan);
StatusOr<CutPlan> PlanFromText(std::string_view text, const ModelConfig& config);

}  // namespace terrace
