#include "worker/engine/device_shard.h"

#include <algorithm>
#include <vector>

#include "worker/model/arch_spec.h"

namespace terrace {
namespace {

template <typename... Text>
Status Refuse(const Text&... text) {
  return WithReason(FailedPrecondition(text...), "cannot_shard");
}

// What the formats of a kind's matrices and kernels keep together of their columns. Powers of two, as all of
// them are.
size_t BlockOf(const std::vector<FoundTensor>& tensors, TensorKind kind) {
  size_t block = kDeviceColumns;
  for (const auto& [required, tensor] : tensors) {
    if (required.kind == kind) block = std::max(block, size_t{Info(tensor.dtype).block_elements});
  }
  return block;
}

IndexRange All(const std::vector<IndexRange>& shards) {
  return {.begin = shards.front().begin, .end = shards.back().end};
}

WeightMatrix RowsOf(const WeightMatrix& matrix, const IndexRange& rows) {
  return RowsOf(matrix, rows.begin, rows.size());
}
WeightMatrix ColumnsOf(const WeightMatrix& matrix, const IndexRange& columns) {
  return ColumnsOf(matrix, columns.begin, columns.size());
}

}  // namespace

StatusOr<ShardPlan> PlanDeviceShard(const ModelConfig& config, const WeightSource& weights,
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
  ASSIGN_OR_RETURN(const std::vector<FoundTensor> tensors, FindTensors(config, weights));
  ShardOptions on_device = options;
  on_device.virtual_shards = options.ranks;
  on_device.attention_block = BlockOf(tensors, TensorKind::kAttentionOutput);
  on_device.ffn_blocks.assign(config.layers, BlockOf(tensors, TensorKind::kDown));
  auto plan = PlanShard(config, on_device);
  if (!plan.ok()) {
    return Annotate(plan.status(), Concat("on GPUs, which take ", kDeviceColumns, " columns together"));
  }
  return plan;
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
  const auto of_heads = [&](const IndexRange& heads) -> IndexRange {
    return {.begin = heads.begin * config.head_dim, .end = heads.end * config.head_dim};
  };
  switch (kind) {
    case TensorKind::kEmbedding:
    case TensorKind::kFinalNorm:
    case TensorKind::kAttentionNorm:
    case TensorKind::kFfnNorm:
      return matrix;
    case TensorKind::kOutput:
      return RowsOf(matrix, plan.vocabulary);
    case TensorKind::kQuery:
      return RowsOf(matrix, of_heads(plan.heads));
    case TensorKind::kKey:
    case TensorKind::kValue:
      return RowsOf(matrix, of_heads(plan.kv_heads));
    case TensorKind::kAttentionOutput:
      return ColumnsOf(matrix, All(plan.attention_shards));
    case TensorKind::kGate:
    case TensorKind::kUp:
      return RowsOf(matrix, plan.Ffn(layer));
    case TensorKind::kDown:
      return ColumnsOf(matrix, All(plan.ffn_shards[layer]));
  }
  return matrix;
}

StatusOr<uint32_t> DeviceOfRank(const DeviceChoice& choice, uint32_t devices) {
  if (!choice.shares_machine || devices == 1) return 0u;
  if (choice.rank < devices) return choice.rank;
  return WithReason(Unavailable("rank ", choice.rank, " of a group on one machine takes device ", choice.rank,
                                ", and this process is shown ", devices, " devices"),
                    "no_device");
}

}  // namespace terrace
