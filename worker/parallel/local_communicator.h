// The Communicator of threads in one process: a message is copied from its sender's memory to its receiver's.
#pragma once

#include <memory>
#include <vector>

#include "worker/parallel/communicator.h"

namespace terrace {

// One for each rank, of which each may be used and destroyed by a thread of its own. A rank that is destroyed
// has ended.
std::vector<std::unique_ptr<Communicator>> MakeLocalCommunicators(uint32_t ranks, Duration timeout);

}  // namespace terrace
