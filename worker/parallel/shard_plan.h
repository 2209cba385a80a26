// Which part of a model each rank of a group owns. The ranks are the stages of a pipeline, each of as many
// neighbouring ranks: stage 0 has the embedding and the first layers, the last one the last layers, the final
// norm and the output matrix. So rank r stands in stage r / n and is the (r % n)th of its n ranks.
//
// The ranks of a stage share each of its layers, as Shoeybi et al., "Megatron-LM: Training Multi-Billion
// Parameter Language Models Using Model Parallelism" (2019) have it: query, key, value, gate, up and the
// output matrix are cut by rows (each output is whole on one rank), the attention's output and down by
// columns, so that each rank has a partial sum of every output. Norms and the embedding are everybody's of a
// stage: of the embedding a step reads the rows of its tokens alone, from the mapped file.
//
// Same bits whatever the number of ranks: the columns are cut into *virtual shards*, of which a rank owns a
// run of neighbours; each is multiplied on its own and all are added as AddTree has it
// (docs/adr/0009-tensor-parallelism.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/status.h"
#include "worker/formats/model_config.h"
#include "worker/formats/tensor_names.h"
#include "worker/parallel/index_range.h"

namespace terrace {

inline constexpr uint32_t kMaxVirtualShards = 64;

struct ShardOptions {
  uint32_t rank = 0, ranks = 1;  // of the whole group; ranks: stages times a power of two
  uint32_t stages = 1;           // of the pipeline; at most as many as there are layers
  // A power of two, a multiple of a stage's ranks, at most kMaxVirtualShards; 0: as many as a stage has
  // ranks. A product whose inputs have fewer blocks has fewer.
  uint32_t virtual_shards = 0;
  // Elements that the file's formats keep together along the inputs of the attention's output and of each
  // layer's down (empty: 1).
  size_t attention_block = 1;
  std::vector<size_t> ffn_blocks = {};
};

struct ShardPlan {
  uint32_t stage = 0, stages = 1;              // this rank's, of how many
  uint32_t tensor_rank = 0, tensor_ranks = 1;  // this rank's place in its stage
  // What is here: of the model's layers, and of each of those.
  IndexRange layers;
  IndexRange heads, kv_heads;  // a KV head is on several ranks where there are more of them than KV heads
  IndexRange vocabulary;       // ShareOf it; of the last stage
  // This rank's virtual shards, rising: columns of the attention's output (heads times head_dim) and, of each
  // layer of the model, of down (its feed-forward width). At least one of each.
  std::vector<IndexRange> attention_shards;
  std::vector<std::vector<IndexRange>> ffn_shards;

  bool is_first_stage() const { return stage == 0; }
  bool is_last_stage() const { return stage + 1 == stages; }
  // The rows of gate and up that are here.
  IndexRange Ffn(uint32_t layer) const {
    return {.begin = ffn_shards[layer].front().begin, .end = ffn_shards[layer].back().end};
  }
};

// The layers of stage `stage`: as equal a number for each as they come, one more for the first ones, as the
// last stage has the output matrix too.
IndexRange LayersOfStage(uint32_t layers, uint32_t stage, uint32_t stages);

// FAILED_PRECONDITION, reason cannot_shard, says with the numbers what cannot be shared out. Never with one
// rank and one virtual shard.
StatusOr<ShardPlan> PlanShard(const ModelConfig& config, const ShardOptions& options);

// Whether this rank's stage uses the tensor; `layer` counts for kinds per layer only. A tied embedding is
// used by the last stage too, as the output matrix.
bool IsHere(const ShardPlan& plan, const ModelConfig& config, TensorKind kind, uint32_t layer);

// What this rank has of a tensor that is here: these rows, these columns of all rows, or (neither) all.
struct TensorPart {
  std::optional<IndexRange> rows = {};
  std::span<const IndexRange> columns = {};  // virtual shards; borrowed from the plan
};
TensorPart PartOf(const ShardPlan& plan, const ModelConfig& config, TensorKind kind, uint32_t layer);
// The elements of a bias that this rank uses: those of the rows that it has of the bias's matrix.
IndexRange ElementsOfBias(const ShardPlan& plan, const ModelConfig& config, TensorKind bias, uint32_t layer);

}  // namespace terrace
