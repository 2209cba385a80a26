// A worker that several ranks of this machine run together, predicted from the same engine on one: each rank
// has its share of the weights, the KV cache and the cores. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/plan/model_shape.h"
#include "tools/plan/parallel_cost.h"
#include "tools/plan/plan.h"
#include "tools/plan/step_probe.h"

namespace terrace {

struct TierOnRanks {
  StepCost cost;
  uint64_t weight_bytes = 0, kv_bytes_per_token = 0;  // of the rank that has the most
  std::vector<std::string> reasons_against = {};
};

// Whether `ranks` can run a model of `shape` as the engine was measured, on one rank. FAILED_PRECONDITION,
// reason cannot_shard, where it cannot be shared out; UNIMPLEMENTED where the engine is not of the CPUs.
Status CheckRanks(const ProbedEngine& alone, const ModelShape& shape, uint32_t ranks);

// `link`: measured among so many ranks. Memory of weights is shared out as the bytes of their formats are.
// Errors of CheckRanks.
StatusOr<TierOnRanks> PutOnRanks(const ProbedEngine& alone, const ModelShape& shape, uint32_t ranks,
                                 const LinkCost& link, uint32_t max_sequences);

}  // namespace terrace
