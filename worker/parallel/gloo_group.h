// A whole group in one process: every rank is a thread, and all are connected over TCP on this machine. For
// measurements of what ranks tell each other.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "worker/parallel/communicator.h"

namespace terrace {

// Runs `run` as every rank at once; returns when all have ended.
void OnEachRank(uint32_t ranks, const std::function<void(uint32_t rank)>& run);

// One for each rank. The first error of ConnectGloo.
StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeGlooGroup(uint32_t ranks, Duration timeout);

}  // namespace terrace
