// What this process may use of the machine: the tighter of the machine's own figures and the limits of the
// control groups it is in (v1 and v2). `root` stands in for "/" in tests.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace terrace {

// At least 1: cores in the affinity mask, at most the CPU quota rounded up.
uint32_t UsableCores(const std::string& root = "");
// Of those, as many as work that is over in seconds takes while a model is opened: 16 at most.
uint32_t OpeningThreads();
// Memory that can be allocated without swapping, page cache that can be dropped included. INTERNAL without
// /proc/meminfo.
StatusOr<uint64_t> FreeMemoryBytes(const std::string& root = "");
// Memory that this process has touched and that is no file's, so that the system cannot drop it: RssAnon and
// RssShmem. INTERNAL where /proc/self/status does not tell (before Linux 4.5).
StatusOr<uint64_t> ResidentBytes(const std::string& root = "");

}  // namespace terrace
