// NUMA: memory that is nearer to some processors than to others.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace terrace {

// The nodes, rising, that have memory and a processor this process may run on; none where the system does not
// say. `root` stands in for "/" in tests.
std::vector<int> MemoryNodes(const std::string& root = "");

// Asks that the pages of [data, data + bytes), none of them touched yet, come from each of `nodes` in turn:
// threads on all of them then share the bandwidth of all. `data` is aligned to a page. UNAVAILABLE when the
// system refuses, as containers may; pages then come from the node of the thread that touches them first.
Status InterleaveOverNodes(void* data, size_t bytes, std::span<const int> nodes);

}  // namespace terrace
