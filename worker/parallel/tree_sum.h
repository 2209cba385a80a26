// The one order in which partial sums of a row-parallel product are added
// (docs/adr/0009-tensor-parallelism.md): a binary tree over neighbours, ((p0 + p1) + (p2 + p3)) + ... A
// number of parts that is a power of two may be cut into equal runs, each added by its owner, and the tree
// over the runs' sums gives the same bits.
#pragma once

#include <cstddef>
#include <span>

namespace terrace {

// Elements [begin, end) of the sum of all parts go to parts[0]; the other parts hold anything afterwards.
inline void AddTree(std::span<float* const> parts, size_t begin, size_t end) {
  for (size_t distance = 1; distance < parts.size(); distance *= 2) {
    for (size_t left = 0; left + distance < parts.size(); left += 2 * distance) {
      float* to = parts[left];
      const float* from = parts[left + distance];
      for (size_t i = begin; i < end; ++i) to[i] += from[i];
    }
  }
}

}  // namespace terrace
