// The rotations of every position of a context, for kernels that look them up by position.
#pragma once

#include <cstddef>
#include <vector>

#include "base/parallel_for.h"

namespace terrace {

struct RopeTable {
  std::vector<float> cos, sin;  // [positions, head_dim / 2]
};

// What RopeAngles (rope_kv.h) says of each position in [0, positions).
RopeTable MakeRopeTable(size_t positions, double base, size_t head_dim, ThreadPool& pool);

}  // namespace terrace
