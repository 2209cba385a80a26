// The rotations of every position of a context, for kernels that look them up by position.
#pragma once

#include <cstddef>
#include <vector>

#include "base/parallel_for.h"
#include "kernels/rope/rope_frequencies.h"

namespace terrace {

struct RopeTable {
  std::vector<float> cos, sin;  // [positions, head_dim / 2]
};

// What RopeAngles says of each position in [0, positions).
RopeTable MakeRopeTable(size_t positions, const RopeFrequencies& frequencies, ThreadPool& pool);

}  // namespace terrace
