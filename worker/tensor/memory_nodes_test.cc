#include "worker/tensor/memory_nodes.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"

namespace terrace {
namespace {

// A root folder that says which nodes have memory, and the processors of each node.
std::string Root(const std::string& name, const std::string& has_memory,
                 const std::vector<std::string>& processors) {
  const auto root = std::filesystem::path(::testing::TempDir()) / name;
  const auto nodes = root / "sys/devices/system/node";
  std::filesystem::remove_all(root);
  std::filesystem::create_directories(nodes);
  std::ofstream(nodes / "has_memory") << has_memory << "\n";
  for (size_t i = 0; i < processors.size(); ++i) {
    const auto folder = nodes / ("node" + std::to_string(i));
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "cpulist") << processors[i] << "\n";
  }
  return root.string();
}

// A processor that this process may run on.
int OwnProcessor() {
  cpu_set_t mask;
  EXPECT_EQ(sched_getaffinity(0, sizeof(mask), &mask), 0);
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(static_cast<size_t>(i), &mask)) return i;
  }
  return -1;
}

TEST(MemoryNodes, HaveMemoryAndAProcessorOfThisProcess) {
  const std::string own = std::to_string(OwnProcessor()), other = "1022-1023";
  EXPECT_EQ(MemoryNodes(Root("all", "0-3", {own, other, "1021," + own, ""})), (std::vector<int>{0, 2}));
  EXPECT_EQ(MemoryNodes(Root("some", "1,3", {own, own, own, "0-" + own})), (std::vector<int>{1, 3}));
  EXPECT_EQ(MemoryNodes(Root("none", "", {own})), std::vector<int>{});
  EXPECT_EQ(MemoryNodes(Root("broken", "0-,x", {own})), std::vector<int>{0});
  EXPECT_EQ(MemoryNodes("/no/such/root"), std::vector<int>{});
}

TEST(InterleaveOverNodes, AsksTheKernel) {
  const std::vector<int> nodes = MemoryNodes();
  if (nodes.empty()) GTEST_SKIP() << "this system has no /sys/devices/system/node";
  constexpr size_t kBytes = 1 << 20;
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  const Status asked = InterleaveOverNodes(memory, kBytes, nodes);
  if (asked.ok()) {
    int policy = -1;
    ASSERT_EQ(syscall(SYS_get_mempolicy, &policy, nullptr, 0, memory, MPOL_F_ADDR), 0);
    EXPECT_EQ(policy, MPOL_INTERLEAVE);
  } else {
    EXPECT_EQ(asked.code(), StatusCode::kUnavailable) << asked;
  }
  static_cast<char*>(memory)[kBytes - 1] = 1;  // whatever it said, the memory is there
  EXPECT_EQ(InterleaveOverNodes(memory, kBytes, std::vector<int>{}).code(), StatusCode::kUnavailable);
  munmap(memory, kBytes);
}

}  // namespace
}  // namespace terrace
