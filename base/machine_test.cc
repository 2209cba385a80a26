#include "base/machine.h"

#include <filesystem>
#include <fstream>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr uint64_t kMiB = 1 << 20;

// A root folder with the given files.
std::string Root(const std::string& name, const std::vector<std::pair<std::string, std::string>>& files) {
  const std::filesystem::path root = std::filesystem::path(::testing::TempDir()) / name;
  std::filesystem::remove_all(root);
  for (const auto& [path, text] : files) {
    const std::filesystem::path file = root / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  return root.string();
}

const std::pair<std::string, std::string> kMeminfo = {"proc/meminfo",
                                                      "MemTotal: 9000000 kB\nMemAvailable:    1048576 kB\n"};

TEST(FreeMemoryBytes, IsWhatTheMachineHasWithoutAGroup) {
  EXPECT_EQ(*FreeMemoryBytes(Root("bare", {kMeminfo})), 1024 * kMiB);
  EXPECT_EQ(FreeMemoryBytes(Root("nothing", {})).status().code(), StatusCode::kInternal);
  EXPECT_GT(*FreeMemoryBytes(), 0u);
}

TEST(FreeMemoryBytes, IsWhatTheTightestGroupLeavesWithItsDroppableCache) {
  const std::string v2 = Root("v2", {kMeminfo,
                                     {"proc/self/cgroup", "0::/pod/box\n"},
                                     {"sys/fs/cgroup/pod/box/memory.max", "max\n"},
                                     {"sys/fs/cgroup/pod/box/memory.current", "104857600\n"},
                                     {"sys/fs/cgroup/pod/memory.max", "536870912\n"},
                                     {"sys/fs/cgroup/pod/memory.current", "314572800\n"},
                                     {"sys/fs/cgroup/pod/memory.stat", "anon 1\ninactive_file 104857600\n"}});
  EXPECT_EQ(*FreeMemoryBytes(v2), (512 - (300 - 100)) * kMiB);
  const std::string v1 = Root("v1", {kMeminfo,
                                     {"proc/self/cgroup", "5:cpu,cpuacct:/a\n3:memory:/not/mounted\n"},
                                     {"sys/fs/cgroup/memory/memory.limit_in_bytes", "209715200\n"},
                                     {"sys/fs/cgroup/memory/memory.usage_in_bytes", "104857600\n"}});
  EXPECT_EQ(*FreeMemoryBytes(v1), 100 * kMiB);
  const std::string over = Root("over", {kMeminfo,
                                         {"proc/self/cgroup", "0::/\n"},
                                         {"sys/fs/cgroup/memory.max", "1000\n"},
                                         {"sys/fs/cgroup/memory.current", "2000\n"}});
  EXPECT_EQ(*FreeMemoryBytes(over), 0u);
}

TEST(ResidentBytes, IsWhatNoFileBacksAndGrowsWithWhatIsTouched) {
  EXPECT_EQ(*ResidentBytes(Root("rss", {{"proc/self/status",
                                         "VmRSS:\t 999 kB\nRssAnon:\t  2048 kB\nRssFile:\t 700 kB\n"
                                         "RssShmem:\t  1024 kB\n"}})),
            3 * kMiB);
  EXPECT_EQ(ResidentBytes(Root("no_rss", {{"proc/self/status", "VmRSS: 999 kB\n"}})).status().code(),
            StatusCode::kInternal);
  const uint64_t before = *ResidentBytes();
  const std::vector<char> touched(64 * kMiB, 1);
  EXPECT_GE(*ResidentBytes(), before + 60 * kMiB) << "the kernel counts in batches of pages";
  EXPECT_EQ(touched.back(), 1);
}

TEST(UsableCores, AreAtMostTheQuotaRoundedUp) {
  EXPECT_GE(UsableCores(), 1u);
  const std::string v2 =
      Root("cpu2", {{"proc/self/cgroup", "0::/a\n"}, {"sys/fs/cgroup/a/cpu.max", "50000 100000\n"}});
  EXPECT_EQ(UsableCores(v2), 1u);
  const std::string v1 = Root("cpu1", {{"proc/self/cgroup", "5:cpu,cpuacct:/a\n"},
                                       {"sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "100000\n"},
                                       {"sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n"}});
  EXPECT_EQ(UsableCores(v1), 1u);
  const std::string none =
      Root("cpu0", {{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "max 100000\n"}});
  EXPECT_EQ(UsableCores(none), UsableCores(Root("empty", {})));
}

}  // namespace
}  // namespace terrace
