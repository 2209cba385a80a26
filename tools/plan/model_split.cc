#include "tools/plan/model_split.h"

#include <algorithm>

#include "kernels/weight_matrix.h"
#include "worker/kv/kv_pool.h"
#include "worker/parallel/shard_plan.h"

namespace terrace {
namespace {

// Elements that the format keeps together, which no rank has a part of.
ShardOptions BlocksOf(const ModelShape& shape) {
  ShardOptions options;
  options.ffn_blocks.assign(shape.config.layers, 1);
  for (const ShapedTensor& tensor : shape.tensors) {
    const size_t block = Info(tensor.dtype).block_elements;
    if (tensor.kind == TensorKind::kAttentionOutput)
      options.attention_block = std::max(options.attention_block, block);
    if (tensor.kind == TensorKind::kDown) {
      size_t& of_layer = options.ffn_blocks[tensor.layer];
      of_layer = std::max(of_layer, block);
    }
  }
  return options;
}

// The rows and columns of a matrix that a rank with this plan has; norms are rows.
WeightMatrix MatrixPartOf(const ShapedTensor& tensor, const ModelConfig& config, const ShardPlan& plan) {
  const bool is_vector = tensor.shape.rank == 1;
  WeightMatrix matrix{.dtype = tensor.dtype,
                      .rows = is_vector ? 1 : static_cast<size_t>(tensor.shape[0]),
                      .columns = static_cast<size_t>(tensor.shape[is_vector ? 0 : 1])};
  const TensorPart part = PartOf(plan, config, tensor.kind, tensor.layer);
  if (part.rows.has_value()) matrix.rows = part.rows->size();
  if (!part.columns.empty()) matrix.columns = part.columns.back().end - part.columns.front().begin;
  return matrix;
}

uint64_t BytesOf(const WeightMatrix& matrix) { return uint64_t{matrix.rows} * matrix.RowBytes(); }

void AddOutput(const WeightMatrix& part, RankShare& share) {
  share.output_bytes += BytesOf(part);
  share.output_elements += uint64_t{part.rows} * part.columns;
}

void Add(const ShapedTensor& tensor, const ModelConfig& config, const ShardPlan& plan, RankShare& share) {
  if (!IsHere(plan, config, tensor.kind, tensor.layer)) return;
  const WeightMatrix part = MatrixPartOf(tensor, config, plan);
  if (tensor.kind == TensorKind::kEmbedding) {
    if (plan.is_first_stage()) share.embedding_bytes += BytesOf(part);
    if (!plan.is_last_stage() || !config.tied_embeddings) return;
    WeightMatrix output = part;
    output.rows = plan.vocabulary.size();
    AddOutput(output, share);
  } else if (tensor.kind == TensorKind::kOutput) {
    AddOutput(part, share);
  } else if (IsVector(tensor.kind)) {
    share.norm_bytes += BytesOf(part);
  } else {
    const uint64_t bytes = BytesOf(part), elements = uint64_t{part.rows} * part.columns;
    share.layer_bytes += bytes;
    share.layer_elements += elements;
    if (config.experts == 0 || !IsPerExpert(tensor.kind)) return;
    share.expert_bytes += bytes;
    share.expert_elements += elements;
  }
}

}  // namespace

StatusOr<ModelSplit> SplitModel(const ModelShape& shape, const ParallelDegrees& degrees) {
  const ModelConfig& config = shape.config;
  CHECK(degrees.tensor > 0 && degrees.pipeline > 0);
  if (degrees.pipeline > config.layers) {
    return WithReason(FailedPrecondition(config.layers, " layers for ", degrees.pipeline, " pipeline stages"),
                      "cannot_shard");
  }
  ModelSplit split{.degrees = degrees};
  ShardOptions options = BlocksOf(shape);
  options.ranks = degrees.ranks();
  options.stages = degrees.pipeline;
  for (options.rank = 0; options.rank < options.ranks; ++options.rank) {
    ASSIGN_OR_RETURN(const ShardPlan plan, PlanShard(config, options));
    RankShare& share = split.ranks.emplace_back();
    share.stage = plan.stage;
    share.rank = plan.tensor_rank;
    share.layers = plan.layers;
    share.heads = static_cast<uint32_t>(plan.heads.size());
    share.kv_heads = static_cast<uint32_t>(plan.kv_heads.size());
    for (const ShapedTensor& tensor : shape.tensors) Add(tensor, config, plan, share);
  }
  return split;
}

uint64_t KvBytesPerToken(const RankShare& share, const ModelConfig& config, KvDType dtype) {
  const KvShape shape{.layers = static_cast<uint32_t>(share.layers.size()),
                      .kv_heads = share.kv_heads,
                      .head_dim = config.head_dim,
                      .block_tokens = 1,
                      .dtype = dtype};
  return shape.BlockBytes();
}

}  // namespace terrace
