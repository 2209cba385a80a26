// A random order that depends on nothing but its seed. Pure.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/rng.h"

namespace terrace {

// 0 to count - 1.
inline std::vector<size_t> ShuffledIndices(size_t count, uint64_t seed) {
  std::vector<std::pair<uint64_t, size_t>> keyed;
  for (size_t i = 0; i < count; ++i) keyed.emplace_back(RandomBits(seed, i), i);
  std::sort(keyed.begin(), keyed.end());
  std::vector<size_t> order;
  for (const auto& [key, index] : keyed) order.push_back(index);
  return order;
}

}  // namespace terrace
