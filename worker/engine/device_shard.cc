#include "worker/engine/device_shard.h"

#include <algorithm>
#include <vector>

#include "worker/model/found_tensors.h"

namespace terrace {
namespace {

template <typename... Text>
Status Refuse(const Text&... text) {
  return WithReason(FailedPrecondition(text...), "cannot_shard");
}

// Powers of two, as all blocks are.
size_t BlockOf(const std::vector<FoundTensor>& tensors, TensorKind kind) {
  size_t block = 1;
  for (const auto& [required, tensor] : tensors) {
    if (required.kind == kind) block = std::max(block, size_t{Info(tensor.dtype).block_elements});
  }
  return block;
}

}  // namespace

StatusOr<ShardPlan> PlanDeviceShard(const ModelConfig& config, const ColumnBlocks& blocks,
                                    const ShardOptions& options) {
  CHECK(options.stages == 1, options.stages, " stages on devices");
  if (!config.ffn_sizes.empty()) return Refuse("layers of unequal feed-forward sizes are for CPUs only");
  if (config.ffn_size % kDeviceColumns != 0) {
    return Refuse("a feed-forward size of ", config.ffn_size, "; on GPUs multiples of ", kDeviceColumns,
                  " are");
  }
  if (config.vocab_size % (kDeviceRows * options.ranks) != 0) {
    return Refuse("a vocabulary of ", config.vocab_size, " for ", options.ranks,
                  " ranks; on GPUs multiples of ", kDeviceRows, " for each are");
  }
  ShardOptions on_device = options;
  on_device.virtual_shards = options.ranks;
  on_device.attention_block = std::max<size_t>(kDeviceColumns, blocks.attention_output);
  on_device.ffn_blocks.assign(config.layers, std::max<size_t>(kDeviceColumns, blocks.down));
  auto plan = PlanShard(config, on_device);
  if (!plan.ok()) {
    return Annotate(plan.status(), Concat("on GPUs, which take ", kDeviceColumns, " columns together"));
  }
  return plan;
}

StatusOr<ShardPlan> PlanDeviceShard(const ModelConfig& config, const WeightSource& weights,
                                    const ShardOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<FoundTensor> tensors, FindTensors(config, weights));
  const ColumnBlocks blocks{.attention_output = BlockOf(tensors, TensorKind::kAttentionOutput),
                            .down = BlockOf(tensors, TensorKind::kDown)};
  return PlanDeviceShard(config, blocks, options);
}

ModelConfig ConfigOfRank(const ModelConfig& config, const ShardPlan& plan) {
  ModelConfig out = config;
  out.heads = static_cast<uint32_t>(plan.heads.size());
  out.kv_heads = static_cast<uint32_t>(plan.kv_heads.size());
  out.ffn_size = static_cast<uint32_t>(plan.Ffn(0).size());
  return out;
}

WeightMatrix PartOfRank(TensorKind kind, uint32_t layer, const WeightMatrix& matrix,
                        const ModelConfig& config, const ShardPlan& plan) {
  const TensorPart part = PartOf(plan, config, kind, layer);
  if (part.rows.has_value()) return RowsOf(matrix, part.rows->begin, part.rows->size());
  if (part.columns.empty()) return matrix;
  const size_t begin = part.columns.front().begin;
  return ColumnsOf(matrix, begin, part.columns.back().end - begin);
}

StatusOr<uint32_t> DeviceOfRank(const DeviceChoice& choice, uint32_t devices) {
  if (!choice.shares_machine || devices == 1) return 0u;
  if (choice.rank < devices) return choice.rank;
  return WithReason(Unavailable("rank ", choice.rank, " of a group on one machine takes device ", choice.rank,
                                ", and this process is shown ", devices, " devices"),
                    "no_device");
}

}  // namespace terrace
