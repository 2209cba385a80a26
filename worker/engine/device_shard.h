// A model on several devices, one of each rank of a group: what of it a rank has, and which device that rank
// takes. The parts are those of worker/parallel/shard_plan.h, but for what kernels of devices keep together.
// Pure.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "kernels/weight_matrix.h"
#include "worker/engine/device_backend.h"
#include "worker/engine/device_rules.h"
#include "worker/formats/model_config.h"
#include "worker/formats/tensor_names.h"
#include "worker/formats/weight_source.h"
#include "worker/parallel/shard_plan.h"

namespace terrace {

// What the formats of matrices that are cut by columns keep together of these.
struct ColumnBlocks {
  size_t attention_output = 1, down = 1;
};

// As PlanShard, of one stage and with a virtual shard for each rank: the columns of every layer are cut
// alike, where both the formats and kernels let them. Also FAILED_PRECONDITION, reason
// cannot_shard: a vocabulary that has not equal multiples of kDeviceRows for all ranks, a feed-forward width
// that is no multiple of kDeviceColumns or differs from layer to layer.
StatusOr<ShardPlan> PlanDeviceShard(const ModelConfig& config, const ColumnBlocks& blocks,
                                    const ShardOptions& options);
// The same of the formats of `weights`. Errors of FindTensors.
StatusOr<ShardPlan> PlanDeviceShard(const ModelConfig& config, const WeightSource& weights,
                                    const ShardOptions& options);

// The model that a rank runs: heads, KV heads and feed-forward width are its own, the vocabulary is all of
// it.
ModelConfig ConfigOfRank(const ModelConfig& config, const ShardPlan& plan);

// What a rank has of a tensor of the model, where it lies; norms and the embedding whole. An output matrix
// that is the embedding is asked for as kOutput.
WeightMatrix PartOfRank(TensorKind kind, uint32_t layer, const WeightMatrix& matrix,
                        const ModelConfig& config, const ShardPlan& plan);

// The number of the device that a process takes, of `devices` (at least one) that it is shown: the first one,
// but of ranks that share a machine and are shown several each its own. UNAVAILABLE, reason no_device, when
// there are too few.
StatusOr<uint32_t> DeviceOfRank(const DeviceChoice& choice, uint32_t devices);

}  // namespace terrace
