#include "tools/optimize/prune_plan.h"

#include <algorithm>
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

std::vector<LayerPlan> PlanCut(const Cut& cut, const ModelConfig& config,
                               const std::vector<LayerImportance>& importance) {
  CHECK(importance.size() == config.layers, importance.size(), " layers of ", config.layers);
  std::vector<double> turned;
  for (const LayerImportance& layer : importance) turned.push_back(layer.turned);
  std::vector<LayerPlan> plan;
  for (const uint32_t layer : First(InFallingOrder(turned), config.layers - cut.layers))
    plan.push_back(
        {.layer = layer,
         .kv_heads = First(InFallingOrder(importance[layer].kv_heads), config.kv_heads - cut.kv_heads),
         .channels = {}});
  const std::vector<size_t> widths = WidthsAfter(cut, plan, importance);
  for (size_t i = 0; i < plan.size(); ++i)
    plan[i].channels = First(InFallingOrder(importance[plan[i].layer].channels), widths[i]);
  return plan;
}

ModelConfig ConfigAfter(const ModelConfig& config, const std::vector<LayerPlan>& plan) {
  ModelConfig out = config;
  out.layers = static_cast<uint32_t>(plan.size());
  out.kv_heads = static_cast<uint32_t>(plan[0].kv_heads.size());
  out.heads = config.heads / config.kv_heads * out.kv_heads;
  std::vector<uint32_t> sizes;
  for (const LayerPlan& layer : plan) sizes.push_back(static_cast<uint32_t>(layer.channels.size()));
  SetFfnSizes(std::move(sizes), out);
  return out;
}

std::string PlanToText(const std::vector<LayerPlan>& plan) {
  Json json = Json::array();
  for (const LayerPlan& layer : plan)
    json.push_back({{"layer", layer.layer}, {"kv_heads", layer.kv_heads}, {"channels", layer.channels}});
  return ToJsonText(json);
}

StatusOr<std::vector<LayerPlan>> PlanFromText(std::string_view text, const ModelConfig& config) {
  // Up to kMaxLayers * kMaxFfn numbers, which we wrote.
  ASSIGN_OR_RETURN(const Json json, ParseJson(text, {.bytes = SIZE_MAX, .nodes = SIZE_MAX}));
  if (!json.is_array() || json.empty()) return DataLoss("a plan that is not a list of layers");
  std::vector<LayerPlan> plan;
  for (const Json& each : json) {
    if (!each.is_object() || !each.contains("layer") || !each["layer"].is_number_unsigned() ||
        each["layer"].get<uint64_t>() >= config.layers || !each.contains("kv_heads") ||
        !each.contains("channels"))
      return DataLoss("a plan with an entry that is not of a layer");
    LayerPlan layer = {.layer = each["layer"].get<uint32_t>(), .kv_heads = {}, .channels = {}};
    ASSIGN_OR_RETURN(layer.kv_heads, Indices(each["kv_heads"], config.kv_heads));
    ASSIGN_OR_RETURN(layer.channels, Indices(each["channels"], config.FfnSize(layer.layer)));
    plan.push_back(std::move(layer));
  }
  return plan;
}

}  // namespace terrace
