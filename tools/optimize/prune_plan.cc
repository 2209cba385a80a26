#include "tools/optimize/prune_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/json.h"

namespace terrace {
namespace {

// Indices of `values`, the largest first; of equal ones the first.
std::vector<uint32_t> InFallingOrder(const std::vector<double>& values) {
  std::vector<uint32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](uint32_t a, uint32_t b) { return values[a] > values[b]; });
  return order;
}

// The `count` first of an order, rising.
std::vector<uint32_t> First(std::vector<uint32_t> order, size_t count) {
  order.resize(count);
  std::ranges::sort(order);
  return order;
}

// How many channels each layer of the plan keeps: channels go in blocks of cut.multiple, the least of a layer
// first, and of all layers the block that adds least, but for the last of a layer.
std::vector<size_t> WidthsAfter(const Cut& cut, const std::vector<LayerPlan>& plan,
                                const std::vector<LayerImportance>& importance) {
  struct Block {
    double importance = 0;        // mean of its channels
    size_t place = 0;             // in the plan
    size_t first = 0, count = 0;  // of the layer's channels in falling order
  };
  std::vector<size_t> widths;
  std::vector<Block> blocks;
  size_t all = 0;
  for (size_t place = 0; place < plan.size(); ++place) {
    const std::vector<double>& channels = importance[plan[place].layer].channels;
    const std::vector<uint32_t> order = InFallingOrder(channels);
    widths.push_back(channels.size());
    all += channels.size();
    for (size_t first = cut.multiple; first < order.size(); first += cut.multiple) {
      Block block = {.place = place, .first = first};
      block.count = std::min<size_t>(cut.multiple, order.size() - first);
      for (size_t i = first; i < first + block.count; ++i) block.importance += channels[order[i]];
      block.importance /= static_cast<double>(block.count);
      blocks.push_back(block);
    }
  }
  // Later blocks of a layer are less important, so a layer loses them from its end.
  std::ranges::stable_sort(blocks, [](const Block& a, const Block& b) {
    return a.importance < b.importance || (a.importance == b.importance && a.first > b.first);
  });
  const double wanted = cut.ffn_share * static_cast<double>(all);
  double removed = 0;
  for (const Block& block : blocks) {
    if (removed + static_cast<double>(block.count) / 2 > wanted) break;
    removed += static_cast<double>(block.count);
    widths[block.place] = std::min(widths[block.place], block.first);
  }
  return widths;
}

// The channels of the residual stream that stay.
std::vector<uint32_t> StreamAfter(const Cut& cut, const ModelConfig& config,
                                  const std::vector<LayerPlan>& layers, const ModelImportance& importance) {
  std::vector<double> sums(config.hidden_size);
  const auto add = [&](const StreamUse& use) {
    CHECK(use.importance.size() == sums.size(), use.importance.size(), " channels of ", sums.size());
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += use.importance[i];
  };
  if (cut.hidden > 0) {
    for (const LayerPlan& plan : layers) {
      add(importance.layers[plan.layer].attention);
      add(importance.layers[plan.layer].ffn);
    }
    add(importance.output);
  }
  return First(InFallingOrder(sums), config.hidden_size - cut.hidden);
}

// By which the gains of a norm are multiplied when it sees the `kept` channels only: the root of their mean
// square over that of all.
double GainOf(const StreamUse& use, std::span<const uint32_t> kept) {
  double energy = 0;
  for (const uint32_t i : kept) energy += use.energy[i];
  const double share = static_cast<double>(kept.size()) / static_cast<double>(use.energy.size());
  return energy > 0 ? std::sqrt(energy / share) : 1;
}

StatusOr<double> Factor(const Json& json, const char* key) {
  if (!json.contains(key) || !json[key].is_number() || !(json[key].get<double>() > 0))
    return DataLoss("a plan without a factor \"", key, "\" above 0");
  return json[key].get<double>();
}

StatusOr<std::vector<uint32_t>> Indices(const Json& list, uint32_t limit) {
  std::vector<uint32_t> out;
  if (!list.is_array() || list.empty()) return DataLoss("a plan without a list of what stays");
  for (const Json& each : list) {
    if (!each.is_number_unsigned() || each.get<uint64_t>() >= limit ||
        (!out.empty() && each.get<uint64_t>() <= out.back()))
      return DataLoss("a plan with an index that is not rising, or not below ", limit);
    out.push_back(each.get<uint32_t>());
  }
  return out;
}

}  // namespace

Status CheckCut(const Cut& cut, const ModelConfig& config) {
  if (!(cut.ffn_share >= 0 && cut.ffn_share < 1))
    return InvalidArgument("--remove-ffn: ", cut.ffn_share, " is not from 0 to below 1");
  if (cut.kv_heads >= config.kv_heads)
    return InvalidArgument("--remove-kv-heads: ", cut.kv_heads, " of the ", config.kv_heads,
                           " of each layer; at least one has to stay");
  if (cut.layers >= config.layers)
    return InvalidArgument("--remove-layers: ", cut.layers, " of ", config.layers,
                           "; at least one has to stay");
  if (cut.hidden >= config.hidden_size)
    return InvalidArgument("--remove-hidden: ", cut.hidden, " of ", config.hidden_size, "; at least ",
                           kHiddenMultiple, " have to stay");
  if (cut.hidden > 0 && (config.hidden_size - cut.hidden) % kHiddenMultiple != 0)
    return InvalidArgument("--remove-hidden: ", cut.hidden, " of ", config.hidden_size, " leave ",
                           config.hidden_size - cut.hidden, ", which is no multiple of ", kHiddenMultiple,
                           ": rows of quantized formats and of 2:4 matrices are whole blocks of it");
  if (cut.multiple < 1 || cut.multiple > kMaxFfn)
    return InvalidArgument("--ffn-multiple: ", cut.multiple, " is not in 1 to ", kMaxFfn);
  if (cut.ffn_share == 0) return Status();
  if (cut.multiple >= config.ffn_size)
    return InvalidArgument("--ffn-multiple: ", cut.multiple, " leaves nothing of the ", config.ffn_size,
                           " channels to remove; at least one multiple stays of each layer");
  double channels = 0;
  for (uint32_t layer = 0; layer < config.layers; ++layer) channels += config.FfnSize(layer);
  if (cut.ffn_share * channels * 2 < cut.multiple)
    return InvalidArgument("--remove-ffn: ", cut.ffn_share, " of ", channels,
                           " channels is less than half of ", cut.multiple,
                           ", the least that goes (--ffn-multiple)");
  return Status();
}

StreamUse UseOfStream(std::vector<double> energy, std::span<const float> gains,
                      std::span<const double> column_squares) {
  CHECK(gains.size() == energy.size() && column_squares.size() == energy.size(), "lists of two widths");
  StreamUse use = {.energy = std::move(energy)};
  double sum = 0;
  for (size_t i = 0; i < gains.size(); ++i) {
    use.importance.push_back(use.energy[i] * gains[i] * gains[i] * column_squares[i]);
    sum += use.importance.back();
  }
  for (double& share : use.importance) share = sum > 0 ? share / sum : 0;
  return use;
}

CutPlan PlanCut(const Cut& cut, const ModelConfig& config, const ModelImportance& importance) {
  const std::vector<LayerImportance>& layers = importance.layers;
  CHECK(layers.size() == config.layers, layers.size(), " layers of ", config.layers);
  std::vector<double> turned;
  for (const LayerImportance& layer : layers) turned.push_back(layer.turned);
  CutPlan plan;
  for (const uint32_t layer : First(InFallingOrder(turned), config.layers - cut.layers))
    plan.layers.push_back(
        {.layer = layer,
         .kv_heads = First(InFallingOrder(layers[layer].kv_heads), config.kv_heads - cut.kv_heads)});
  const std::vector<size_t> widths = WidthsAfter(cut, plan.layers, layers);
  for (size_t i = 0; i < plan.layers.size(); ++i)
    plan.layers[i].channels = First(InFallingOrder(layers[plan.layers[i].layer].channels), widths[i]);
  plan.hidden = StreamAfter(cut, config, plan.layers, importance);
  if (cut.hidden == 0) return plan;
  for (LayerPlan& layer : plan.layers) {
    layer.attention_gain = GainOf(layers[layer.layer].attention, plan.hidden);
    layer.ffn_gain = GainOf(layers[layer.layer].ffn, plan.hidden);
  }
  plan.final_gain = GainOf(importance.output, plan.hidden);
  return plan;
}

ModelConfig ConfigAfter(const ModelConfig& config, const CutPlan& plan) {
  ModelConfig out = config;
  out.hidden_size = static_cast<uint32_t>(plan.hidden.size());
  out.layers = static_cast<uint32_t>(plan.layers.size());
  out.kv_heads = static_cast<uint32_t>(plan.layers[0].kv_heads.size());
  out.heads = config.heads / config.kv_heads * out.kv_heads;
  std::vector<uint32_t> sizes;
  for (const LayerPlan& layer : plan.layers) sizes.push_back(static_cast<uint32_t>(layer.channels.size()));
  SetFfnSizes(std::move(sizes), out);
  return out;
}

std::string PlanToText(const CutPlan& plan) {
  Json layers = Json::array();
  for (const LayerPlan& layer : plan.layers)
    layers.push_back({{"layer", layer.layer},
                      {"kv_heads", layer.kv_heads},
                      {"channels", layer.channels},
                      {"attention_gain", layer.attention_gain},
                      {"ffn_gain", layer.ffn_gain}});
  return ToJsonText({{"hidden", plan.hidden}, {"final_gain", plan.final_gain}, {"layers", layers}});
}

StatusOr<CutPlan> PlanFromText(std::string_view text, const ModelConfig& config) {
  // Up to kMaxLayers * kMaxFfn numbers, which we wrote.
  ASSIGN_OR_RETURN(const Json json, ParseJson(text, {.bytes = SIZE_MAX, .nodes = SIZE_MAX}));
  if (!json.is_object() || !json.contains("hidden") || !json.contains("layers") ||
      !json["layers"].is_array() || json["layers"].empty())
    return DataLoss("a plan without a list of channels and of layers");
  CutPlan plan;
  ASSIGN_OR_RETURN(plan.hidden, Indices(json["hidden"], config.hidden_size));
  ASSIGN_OR_RETURN(plan.final_gain, Factor(json, "final_gain"));
  for (const Json& each : json["layers"]) {
    if (!each.is_object() || !each.contains("layer") || !each["layer"].is_number_unsigned() ||
        each["layer"].get<uint64_t>() >= config.layers || !each.contains("kv_heads") ||
        !each.contains("channels"))
      return DataLoss("a plan with an entry that is not of a layer");
    LayerPlan layer = {.layer = each["layer"].get<uint32_t>()};
    ASSIGN_OR_RETURN(layer.kv_heads, Indices(each["kv_heads"], config.kv_heads));
    ASSIGN_OR_RETURN(layer.channels, Indices(each["channels"], config.FfnSize(layer.layer)));
    ASSIGN_OR_RETURN(layer.attention_gain, Factor(each, "attention_gain"));
    ASSIGN_OR_RETURN(layer.ffn_gain, Factor(each, "ffn_gain"));
    plan.layers.push_back(std::move(layer));
  }
  return plan;
}

}  // namespace terrace
