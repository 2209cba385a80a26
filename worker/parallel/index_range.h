// Runs of indices, and how they are shared out. Values.
#pragma once

#include <cstddef>

namespace terrace {

// Half-open: [begin, end).
struct IndexRange {
  size_t begin = 0, end = 0;
  size_t size() const { return end - begin; }
  friend bool operator==(const IndexRange&, const IndexRange&) = default;
};

// Share `index` of `count` of [0, size): in order, as equal as they come.
constexpr IndexRange ShareOf(size_t size, size_t index, size_t count) {
  return {.begin = size * index / count, .end = size * (index + 1) / count};
}

}  // namespace terrace
