// A model split over ranks: a pipeline of stages, each with a run of the layers, and in each stage a
// tensor-parallel group that shares every layer out (worker/parallel/shard_plan.h). What each rank has of
// it follows from the same plan by which ranks load their parts. Values; pure.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "kernels/attention/kv_layer.h"
#include "tools/plan/model_shape.h"
#include "worker/parallel/index_range.h"

namespace terrace {

struct ParallelDegrees {
  uint32_t tensor = 1;    // ranks that share a layer out: a power of two
  uint32_t pipeline = 1;  // stages

  uint32_t ranks() const { return tensor * pipeline; }
  friend bool operator==(const ParallelDegrees&, const ParallelDegrees&) = default;
};

// What one rank has. Bytes are those of the formats, as files hold them; the f32 scales of INT8's rows, 4
// bytes for each, are not among them. The embedding is whole on the ranks of the first stage; the
// output matrix, which a tied one is too, is shared out over those of the last.
struct RankShare {
  uint32_t stage = 0, rank = 0;  // rank: of its stage
  IndexRange layers = {};
  uint32_t heads = 0, kv_heads = 0;  // of each layer
  uint64_t layer_bytes = 0, layer_elements = 0;
  uint64_t expert_bytes = 0, expert_elements = 0;  // of these, what experts have
  uint64_t output_bytes = 0, output_elements = 0;
  uint64_t embedding_bytes = 0, norm_bytes = 0;

  // A tied output matrix counts beside the embedding: it is multiplied by from memory of its own.
  uint64_t weight_bytes() const { return layer_bytes + output_bytes + embedding_bytes + norm_bytes; }
};

struct ModelSplit {
  ParallelDegrees degrees = {};
  std::vector<RankShare> ranks = {};  // [stages, ranks of a stage]
};

// FAILED_PRECONDITION, reason cannot_shard: errors of PlanShard, or more stages than layers.
StatusOr<ModelSplit> SplitModel(const ModelShape& shape, const ParallelDegrees& degrees);

// Of keys and values of a rank's layers and heads. A rank that shares a KV head holds it whole.
uint64_t KvBytesPerToken(const RankShare& share, const ModelConfig& config, KvDType dtype);

}  // namespace terrace
