#include "base/machine.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>

namespace terrace {
namespace {

// The first number of a file: none when it is absent or says "max".
std::optional<int64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (!(file >> value)) return std::nullopt;
  return value;
}

// The number after `key` in a file of lines "key number".
std::optional<uint64_t> ReadField(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    uint64_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return std::nullopt;
}

// Calls `visit` with the folder of each control group that holds this process for `controller`, innermost
// first. A container may see its own group as the root of the hierarchy while its path names a folder of the
// host: folders that do not exist have no files, so they limit nothing.
void ForEachGroup(const std::string& root, const std::string& controller,
                  const std::function<void(const std::string& folder, bool is_v2)>& visit) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // "4:cpu,cpuacct:/path", of v2 "0::/path"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool is_v2 = controllers == ",,";
    if (!is_v2 && controllers.find("," + controller + ",") == std::string::npos) continue;
    const std::string mount = root + "/sys/fs/cgroup" + (is_v2 ? "" : "/" + controller);
    std::string path = line.substr(second + 1);
    while (path.size() > 1) {
      visit(mount + path, is_v2);
      path.resize(path.rfind('/'));
    }
    visit(mount, is_v2);
  }
}

std::optional<uint64_t> FreeInGroup(const std::string& folder, bool is_v2) {
  const auto limit = ReadNumber(folder + (is_v2 ? "/memory.max" : "/memory.limit_in_bytes"));
  const auto used = ReadNumber(folder + (is_v2 ? "/memory.current" : "/memory.usage_in_bytes"));
  if (!limit.has_value() || !used.has_value()) return std::nullopt;
  const auto cache = ReadField(folder + "/memory.stat", is_v2 ? "inactive_file" : "total_inactive_file");
  const uint64_t kept = static_cast<uint64_t>(*used) - std::min<uint64_t>(*used, cache.value_or(0));
  return static_cast<uint64_t>(*limit) - std::min<uint64_t>(*limit, kept);
}

std::optional<uint32_t> CoresOfGroup(const std::string& folder, bool is_v2) {
  int64_t quota = 0, period = 0;
  if (is_v2) {
    std::ifstream file(folder + "/cpu.max");  // "200000 100000" or "max 100000", microseconds
    if (!(file >> quota >> period)) return std::nullopt;
  } else {
    quota = ReadNumber(folder + "/cpu.cfs_quota_us").value_or(-1);  // -1: no quota
    period = ReadNumber(folder + "/cpu.cfs_period_us").value_or(0);
  }
  if (quota <= 0 || period <= 0) return std::nullopt;
  return static_cast<uint32_t>((quota + period - 1) / period);
}

}  // namespace

uint32_t UsableCores(const std::string& root) {
  cpu_set_t mask;
  uint32_t cores =
      sched_getaffinity(0, sizeof(mask), &mask) == 0 ? static_cast<uint32_t>(CPU_COUNT(&mask)) : 1;
  ForEachGroup(root, "cpu", [&](const std::string& folder, bool is_v2) {
    cores = std::min(cores, CoresOfGroup(folder, is_v2).value_or(cores));
  });
  return std::max(cores, 1u);
}

uint32_t OpeningThreads() {
  constexpr uint32_t kMost = 16;
  return std::min(UsableCores(), kMost);
}

StatusOr<uint64_t> FreeMemoryBytes(const std::string& root) {
  const std::string meminfo = root + "/proc/meminfo";
  const auto available = ReadField(meminfo, "MemAvailable:");
  if (!available.has_value()) return Internal(meminfo, ": no MemAvailable");
  uint64_t free = *available * 1024;  // kB
  ForEachGroup(root, "memory", [&](const std::string& folder, bool is_v2) {
    free = std::min(free, FreeInGroup(folder, is_v2).value_or(free));
  });
  return free;
}

StatusOr<uint64_t> ResidentBytes(const std::string& root) {
  const std::string status = root + "/proc/self/status";
  const auto anonymous = ReadField(status, "RssAnon:"), shared = ReadField(status, "RssShmem:");
  if (!anonymous.has_value() || !shared.has_value()) return Internal(status, ": no RssAnon, or no RssShmem");
  return (*anonymous + *shared) * 1024;  // kB
}

}  // namespace terrace
