#include "tools/cli/launch/local_cluster.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(LikelyCause, IsNotARankThatOnlyMissedTheOthers) {
  ClusterPlan plan;
  plan.workers.push_back({.name = "worker-a", .tier = "a", .config = {}});
  const auto ended = [](const char* name, int code, int signal = 0) {
    return ChildExit{.name = name, .exit_code = code, .signal = signal, .last_lines = {}};
  };
  const struct {
    std::vector<ChildExit> exits;
    const char* cause;
  } cases[] = {
      {{ended("worker-a-rank-1", 69), ended("worker-a", 65)}, "worker-a"},
      {{ended("worker-a-rank-1", 69), ended("worker-a", 69)}, "worker-a"},
      {{ended("worker-a-rank-1", 0), ended("worker-a", 0)}, "worker-a"},
      {{ended("worker-a", 69), ended("worker-a-rank-1", 65)}, "worker-a-rank-1"},
      {{ended("worker-a", 69), ended("worker-a-rank-1", 0, 9)}, "worker-a-rank-1"},
      {{ended("worker-a-rank-2", 78), ended("worker-a", 65)}, "worker-a-rank-2"},
      {{ended("worker-a-rank-1", 69), ended("router", 69)}, "router"},
      {{ended("worker-a-rank-1", 69)}, "worker-a-rank-1"},
  };
  for (const auto& each : cases) EXPECT_EQ(LikelyCause(each.exits, plan).name, each.cause);
}

}  // namespace
}  // namespace terrace
