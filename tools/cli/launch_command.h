// What `up` and `demo` share: from flags to a running cluster, and watching it.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/launch/local_cluster.h"

namespace terrace {

struct LaunchOptions {
  std::string file;     // a cluster file, or
  std::string model;    // one model
  std::string bin_dir;  // "": beside this program
  double ready_timeout_seconds = 120;
  bool show_output = true;  // of the processes, each line after its name
};

// Plans, checks the ports, starts, and waits until every process is ready, saying so on `out`.
StatusOr<std::unique_ptr<LocalCluster>> Launch(const LaunchOptions& options, const CommandContext& context);

// Moves output along for up to `seconds` and reports every process that ended on `err`. INTERNAL when the
// router did: nothing is left to serve.
Status Watch(LocalCluster& cluster, double seconds, const CommandContext& context);

// Watches until a signal comes.
Status WatchUntilSignal(LocalCluster& cluster, const CommandContext& context);

// A line of a process as a terminal shows it: of its log's information the beginning (worker_ready alone has
// 1 KB), anything else whole.
std::string ShownLine(const std::string& line);
// How a process of the cluster ended, and what becomes of it and the others.
std::string DescribeEnd(const ChildExit& exit, AfterEnd after);

// A command that asks the cluster's HTTP port; "" when it is off.
std::string CurlExample(const ClusterPlan& plan, const std::string& question);
// The model a client names to leave the choice to the router.
std::string DefaultModel(const v1::RouterConfig& router);

}  // namespace terrace
