// What `terrace up` is going to start, worked out from a cluster file or a single model before anything runs:
// pure but for reading the file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/terrace/v1/config.pb.h"
#include "tools/cli/launch/ports.h"

namespace terrace {

struct WorkerPlan {
  std::string name;  // "worker-nano": after its tier; replicas "worker-nano-2"; without a tier "worker-8101"
  std::string tier;  // "": none lists it
  v1::WorkerConfig config;  // of a group its leader's

  uint32_t ranks() const { return std::max(config.group().ranks(), 1u); }
};

// The other ranks of the group that `leader` leads, "worker-nano-rank-1" and on: they have no tier and no
// addresses of their own, and draft nothing. None without a group.
std::vector<WorkerPlan> FollowersOf(const WorkerPlan& leader);

// Every address is explicit: what the file leaves out has its default, worker i 127.0.0.1:8101+i, ops 9091+i
// and, of a group, leader 8201+i.
struct ClusterPlan {
  v1::RouterConfig router;
  std::vector<WorkerPlan> workers;

  std::vector<PortUse> ports() const;
};

// Paths in the file are relative to its folder.
StatusOr<ClusterPlan> PlanFromFile(const std::string& file);
// Of what was read from `file`.
StatusOr<ClusterPlan> PlanFor(v1::ClusterFile parsed, const std::string& file);
// One worker, and a tier named after the model's file or folder.
StatusOr<ClusterPlan> PlanForModel(const std::string& model_path);

// Gives workers, and the ranks of groups, whose threads are not set equal shares of the `cores` that the
// others leave, one thread at least: left alone, each would take all of them.
void ShareCores(ClusterPlan& plan, uint32_t cores);

}  // namespace terrace
