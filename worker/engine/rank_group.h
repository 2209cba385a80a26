// Several processes that run one model together, each a part of it (docs/adr/0009-tensor-parallelism.md and
// docs/adr/0011-pipeline-parallelism.md): what opening a model needs of them. Rank 0 leads: it has the
// Engine, with a GroupExecutor; the others are Followers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "worker/parallel/communicator.h"

namespace terrace {

// What all ranks have alike, or they would compute different things.
struct RankTraits {
  std::string model_digest;
  std::vector<std::pair<std::string, std::string>> settings;  // name and value, in one order
};

// This rank's ties to the others. Owned by what owns the rank's Executor, and outlives that.
class RankGroup {
 public:
  virtual ~RankGroup() = default;

  virtual Communicator& communicator() = 0;
  // Returns when every rank has called it, however long that takes: the communicator's calls have a timeout.
  // UNAVAILABLE when a rank has gone; CANCELLED.
  virtual Status AwaitAll() = 0;
  // UNAVAILABLE when another rank is known to have gone since all were connected, at the leader with its
  // number; waits for nothing. Any thread. For what takes long without a word to the others, such as loading.
  virtual Status FindLost() = 0;
};

struct GroupOptions {
  uint32_t rank = 0, ranks = 1;
  uint32_t stages = 1;          // of the pipeline that the ranks are; each has the same power of two of them
  bool shares_machine = false;  // all ranks are on one machine: each has its share of the free memory
  // Needed with several ranks: returns when all are connected. FAILED_PRECONDITION, reason ranks_differ, when
  // they have not the same traits; CANCELLED.
  std::function<StatusOr<std::unique_ptr<RankGroup>>(const RankTraits& traits)> join = nullptr;
};

// Of one rank.
struct RankMemory {
  uint64_t weight_bytes = 0, kv_bytes = 0;
};

}  // namespace terrace
