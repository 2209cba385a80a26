#include "worker/parallel/shard_plan.h"

#include <algorithm>
#include <bit>

namespace terrace {
namespace {

template <typename... Text>
Status Refuse(const Text&... text) {
  return WithReason(FailedPrecondition(text...), "cannot_shard");
}

Status CheckNumbers(uint32_t ranks, uint32_t shards) {
  if (!std::has_single_bit(ranks) || ranks > kMaxVirtualShards) {
    return Refuse(ranks, " ranks: not a power of two up to ", kMaxVirtualShards);
  }
  if (!std::has_single_bit(shards) || shards > kMaxVirtualShards || shards < ranks) {
    return Refuse(shards, " virtual shards: not a power of two from the ", ranks, " ranks up to ",
                  kMaxVirtualShards);
  }
  return Status();
}

// From here on `options` are of a stage: its ranks share each layer.

// The virtual shards of `options.rank` of [0, width): whole blocks. There are enough for the ranks.
std::vector<IndexRange> VirtualShards(size_t width, size_t block, uint32_t shards,
                                      const ShardOptions& options) {
  const size_t blocks = width / block;
  size_t all = shards;
  while (all > blocks) all /= 2;
  const IndexRange mine = ShareOf(all, options.rank, options.ranks);
  std::vector<IndexRange> out;
  for (size_t i = mine.begin; i < mine.end; ++i) {
    const IndexRange in_blocks = ShareOf(blocks, i, all);
    out.push_back({.begin = in_blocks.begin * block, .end = in_blocks.end * block});
  }
  return out;
}

size_t FfnBlock(const ShardOptions& options, uint32_t layer) {
  return options.ffn_blocks.empty() ? 1 : options.ffn_blocks[layer];
}

Status CheckHeads(const ModelConfig& config, const ShardOptions& options) {
  const uint32_t ranks = options.ranks;
  if (config.heads % ranks != 0) {
    return Refuse(config.heads, " attention heads are not a multiple of ", ranks, " ranks");
  }
  if (config.kv_heads % ranks != 0 && ranks % config.kv_heads != 0) {
    return Refuse(config.kv_heads, " KV heads are neither a multiple nor a divisor of ", ranks, " ranks");
  }
  const size_t width = size_t{config.heads} / ranks * config.head_dim;
  if (width % options.attention_block != 0) {
    return Refuse("the ", config.heads / ranks, " attention heads of a rank are ", width,
                  " wide, not whole blocks of ", options.attention_block,
                  ", as the file has the attention's output");
  }
  return Status();
}

IndexRange KvHeads(const ModelConfig& config, const ShardOptions& options) {
  if (config.kv_heads >= options.ranks) return ShareOf(config.kv_heads, options.rank, options.ranks);
  const size_t head = size_t{options.rank} * config.kv_heads / options.ranks;
  return {.begin = head, .end = head + 1};
}

// Of each layer, for `options.rank` of a stage.
StatusOr<ShardPlan> PlanTensorShard(const ModelConfig& config, const ShardOptions& options) {
  const uint32_t ranks = options.ranks;
  const uint32_t shards = options.virtual_shards > 0 ? options.virtual_shards : ranks;
  RETURN_IF_ERROR(CheckNumbers(ranks, shards));
  RETURN_IF_ERROR(CheckHeads(config, options));
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    const size_t width = config.FfnSize(layer), block = FfnBlock(options, layer);
    CHECK(width % block == 0, width, " in blocks of ", block);
    if (width / block < ranks) {
      return Refuse("the feed-forward width of ", width, " has ", width / block, " blocks of ", block,
                    ", as the file has down, for ", ranks, " ranks");
    }
  }
  if (config.vocab_size < ranks)
    return Refuse("a vocabulary of ", config.vocab_size, " for ", ranks, " ranks");
  ShardPlan plan;
  plan.tensor_rank = options.rank;
  plan.tensor_ranks = ranks;
  plan.heads = ShareOf(config.heads, options.rank, ranks);
  plan.kv_heads = KvHeads(config, options);
  plan.vocabulary = ShareOf(config.vocab_size, options.rank, ranks);
  plan.attention_shards =
      VirtualShards(size_t{config.heads} * config.head_dim, options.attention_block, shards, options);
  for (uint32_t layer = 0; layer < config.layers; ++layer)
    plan.ffn_shards.push_back(
        VirtualShards(config.FfnSize(layer), FfnBlock(options, layer), shards, options));
  return plan;
}

}  // namespace

IndexRange LayersOfStage(uint32_t layers, uint32_t stage, uint32_t stages) {
  const uint32_t each = layers / stages, more = layers % stages;
  const uint32_t begin = stage * each + std::min(stage, more);
  return {.begin = begin, .end = begin + each + (stage < more ? 1 : 0)};
}

StatusOr<ShardPlan> PlanShard(const ModelConfig& config, const ShardOptions& options) {
  const uint32_t stages = options.stages;
  CHECK(options.rank < options.ranks, "rank ", options.rank, " of ", options.ranks);
  if (stages == 0 || options.ranks % stages != 0)
    return Refuse(options.ranks, " ranks are not a multiple of ", stages, " pipeline stages");
  if (stages > config.layers)
    return Refuse("group.pipeline_parallel is ", stages, ", and the model has ", config.layers, " layers");
  ShardOptions tensor = options;
  tensor.ranks = options.ranks / stages;
  tensor.rank = options.rank % tensor.ranks;
  StatusOr<ShardPlan> plan = PlanTensorShard(config, tensor);
  if (!plan.ok() && stages > 1)
    return Annotate(plan.status(), Concat("each of ", stages, " pipeline stages"));
  RETURN_IF_ERROR(plan.status());
  plan->stage = options.rank / tensor.ranks;
  plan->stages = stages;
  plan->layers = LayersOfStage(config.layers, plan->stage, stages);
  return plan;
}

bool IsHere(const ShardPlan& plan, const ModelConfig& config, TensorKind kind, uint32_t layer) {
  switch (kind) {
    case TensorKind::kEmbedding:
      return plan.is_first_stage() || (plan.is_last_stage() && config.tied_embeddings);
    case TensorKind::kOutput:
    case TensorKind::kFinalNorm:
      return plan.is_last_stage();
    case TensorKind::kRopeDivisors:
      return true;
    default:
      return plan.layers.begin <= layer && layer < plan.layers.end;
  }
}

TensorPart PartOf(const ShardPlan& plan, const ModelConfig& config, TensorKind kind, uint32_t layer) {
  const auto of_heads = [&](const IndexRange& heads) -> IndexRange {
    return {.begin = heads.begin * config.head_dim, .end = heads.end * config.head_dim};
  };
  switch (kind) {
    case TensorKind::kQuery:
      return {.rows = of_heads(plan.heads)};
    case TensorKind::kKey:
    case TensorKind::kValue:
      return {.rows = of_heads(plan.kv_heads)};
    case TensorKind::kAttentionOutput:
      return {.columns = plan.attention_shards};
    case TensorKind::kGate:
    case TensorKind::kUp:
      return {.rows = plan.Ffn(layer)};
    case TensorKind::kDown:
      return {.columns = plan.ffn_shards[layer]};
    case TensorKind::kOutput:
      return {.rows = plan.vocabulary};
    case TensorKind::kEmbedding:
    case TensorKind::kFinalNorm:
    case TensorKind::kRopeDivisors:
    case TensorKind::kAttentionNorm:
    case TensorKind::kQueryBias:  // whole in the file; a rank takes those of its heads
    case TensorKind::kKeyBias:
    case TensorKind::kValueBias:
    case TensorKind::kQueryNorm:
    case TensorKind::kKeyNorm:
    case TensorKind::kAttentionPostNorm:
    case TensorKind::kFfnNorm:
    case TensorKind::kRouter:  // every rank chooses the experts of all tokens, and has a part of each
    case TensorKind::kFfnPostNorm:
      break;
  }
  return {};
}

IndexRange ElementsOfBias(const ShardPlan& plan, const ModelConfig& config, TensorKind bias, uint32_t layer) {
  return *PartOf(plan, config, MatrixOfBias(bias), layer).rows;
}

}  // namespace terrace
