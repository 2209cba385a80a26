// Which part of a model each rank of a tensor-parallel group owns, as Shoeybi et al., "Megatron-LM: Training
// Multi-Billion Parameter Language Models Using Model Parallelism" (2019) have it: query, key, value, gate,
// up and the output matrix are cut by rows (each output is whole on one rank), the attention's output and
// down by columns, so that each rank has a partial sum of every output. Norms and the embedding are
// everybody's: of the embedding a step reads the rows of its tokens alone, from the mapped file.
//
// Same bits whatever the number of ranks: the columns are cut into *virtual shards*, of which a rank owns a
// run of neighbours; each is multiplied on its own and all are added as AddTree has it
// (docs/adr/0009-tensor-parallelism.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "worker/formats/model_config.h"
#include "worker/parallel/index_range.h"

namespace terrace {

inline constexpr uint32_t kMaxVirtualShards = 64;

struct ShardOptions {
  uint32_t rank = 0, ranks = 1;  // ranks: a power of two
  // A power of two, a multiple of ranks, at most kMaxVirtualShards; 0: as many as ranks. A product whose
  // inputs have fewer blocks has fewer.
  uint32_t virtual_shards = 0;
  // Elements that the file's formats keep together along the inputs of the attention's output and of each
  // layer's down (empty: 1).
  size_t attention_block = 1;
  std::vector<size_t> ffn_blocks = {};
};

struct ShardPlan {
  IndexRange heads, kv_heads;  // a KV head is on several ranks where there are more of them than KV heads
  IndexRange vocabulary;       // ShareOf it
  // This rank's virtual shards, rising: columns of the attention's output (heads times head_dim) and, of each
  // layer, of down (its feed-forward width). At least one of each.
  std::vector<IndexRange> attention_shards;
  std::vector<std::vector<IndexRange>> ffn_shards;

  // The rows of gate and up that are here.
  IndexRange Ffn(uint32_t layer) const {
    return {.begin = ffn_shards[layer].front().begin, .end = ffn_shards[layer].back().end};
  }
};

// FAILED_PRECONDITION, reason cannot_shard, says with the numbers what cannot be shared out. Never with one
// rank and one virtual shard.
StatusOr<ShardPlan> PlanShard(const ModelConfig& config, const ShardOptions& options);

}  // namespace terrace
