#include "worker/tensor/memory_nodes.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

namespace terrace {
namespace {

// A list as the kernel writes it, "0-3,8"; what cannot be read ends it.
std::vector<int> ReadList(const std::string& path) {
  std::ifstream file(path);
  std::vector<int> out;
  std::string text;
  std::getline(file, text);
  std::istringstream ranges(text);
  for (std::string range; std::getline(ranges, range, ',');) {
    std::istringstream bounds(range);
    int first = 0, last = 0;
    char dash = 0;
    if (!(bounds >> first)) break;
    if (!(bounds >> dash >> last)) last = first;
    for (int i = first; i <= last; ++i) out.push_back(i);
  }
  return out;
}

bool MayRunOn(const cpu_set_t& mask, int processor) {
  return processor < CPU_SETSIZE && CPU_ISSET(static_cast<size_t>(processor), &mask);
}

}  // namespace

std::vector<int> MemoryNodes(const std::string& root) {
  const std::string folder = root + "/sys/devices/system/node/";
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof(mask), &mask) != 0) return {};
  std::vector<int> nodes;
  for (const int node : ReadList(folder + "has_memory")) {
    const std::vector<int> processors = ReadList(Concat(folder, "node", node, "/cpulist"));
    const bool may_run = std::ranges::any_of(processors, [&](int each) { return MayRunOn(mask, each); });
    if (may_run) nodes.push_back(node);
  }
  return nodes;
}

Status InterleaveOverNodes(void* data, size_t bytes, std::span<const int> nodes) {
  constexpr size_t kWordBits = 8 * sizeof(unsigned long);
  std::vector<unsigned long> mask(nodes.empty() ? 1 : static_cast<size_t>(nodes.back()) / kWordBits + 1);
  for (const int node : nodes) {
    mask[static_cast<size_t>(node) / kWordBits] |= 1ul << (static_cast<size_t>(node) % kWordBits);
  }
  // The kernel reads one bit less than it is told.
  const size_t bits = mask.size() * kWordBits + 1;
  if (syscall(SYS_mbind, data, bytes, MPOL_INTERLEAVE, mask.data(), bits, 0) == 0) return {};
  return Unavailable("memory cannot be interleaved: ", std::strerror(errno));
}

}  // namespace terrace
