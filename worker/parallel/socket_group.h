// A whole group in one process: every rank is a thread, and all are connected over sockets on this machine.
// For measurements of what ranks tell each other.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "worker/parallel/communicator.h"
#include "worker/parallel/transport.h"

namespace terrace {

// One for each rank. The first error of Connect.
StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeSocketGroup(uint32_t ranks, Duration timeout,
                                                                     Transport transport = Transport::kTcp);

}  // namespace terrace
