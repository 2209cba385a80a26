// Measures what sums over the ranks of a group take on this machine. Some tenths of a second.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "worker/parallel/communicator.h"

namespace terrace {

struct SumSample {
  size_t bytes = 0;
  double seconds = 0;  // the median of the rounds, as rank 0 has it
};

struct SumProbeOptions {
  std::vector<size_t> bytes = {4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20};  // whole floats
  uint32_t rounds = 60;                                                           // of each size, at least 1
  std::function<bool()> is_cancelled = nullptr;                                   // asked between sizes
};

// Of a group that is there: runs every rank on a thread of its own. Errors of the communicators; CANCELLED.
StatusOr<std::vector<SumSample>> MeasureSums(std::span<const std::unique_ptr<Communicator>> group,
                                             const SumProbeOptions& options = {});

// Of `ranks`, 2 at least, that are connected over TCP on this machine, as groups of `terrace up` are. Errors
// of MakeSocketGroup too.
StatusOr<std::vector<SumSample>> MeasureSumsHere(uint32_t ranks, const SumProbeOptions& options = {});

}  // namespace terrace
