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
#pragma once

#include <cstdint>
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
  uint32_t multiple = 64;  // of which feed-forward widths are multiples, where those of the model are

  bool is_empty() const { return ffn_share == 0 && kv_heads == 0 && layers == 0; }
};

// INVALID_ARGUMENT with the flag's name, the number and the limit.
Status CheckCut(const Cut& cut, const ModelConfig& config);

struct LayerImportance {
  double turned = 0;                                 // 1 - mean cosine
  std::vector<double> kv_heads = {}, channels = {};  // squares, over those of the residual stream
};

struct LayerPlan {
  uint32_t layer = 0;                        // of the model that is pruned
  std::vector<uint32_t> kv_heads, channels;  // that stay, rising
};

// Of the layers that stay, in order. `importance` is of each layer of `config`; the cut was checked.
std::vector<LayerPlan> PlanCut(const Cut& cut, const ModelConfig& config,
                               const std::vector<LayerImportance>& importance);

// The model that the plan leaves.
ModelConfig ConfigAfter(const ModelConfig& config, const std::vector<LayerPlan>& plan);

// A plan as a journal keeps it. DATA_LOSS for what PlanToText did not make of a plan for `config`.
std::string PlanToText(const std::vector<LayerPlan>& plan);
StatusOr<std::vector<LayerPlan>> PlanFromText(std::string_view text, const ModelConfig& config);

}  // namespace terrace
