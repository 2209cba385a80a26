// A router and its workers as child processes of this one: started together, watched, stopped in order. Used
// by the thread that made it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/shutdown.h"
#include "base/status.h"
#include "tools/cli/launch/child_process.h"
#include "tools/cli/launch/cluster_plan.h"
#include "tools/cli/launch/config_folder.h"

namespace terrace {

inline constexpr char kRouterName[] = "router";  // of the router's child process

struct LocalClusterOptions {
  std::string bin_dir;     // holds terrace-router and terrace-worker
  std::string log_format;  // of processes whose configuration names none; "": their default
  double ready_timeout_seconds = 120;
  double stop_grace_seconds = 35;  // the router, which stops first, lets answers end for 30 s
  ChildProcesses::OnLine on_line = [](const std::string&, const std::string&) {};
  std::function<void(const std::string& name)> on_ready = [](const std::string&) {};  // once for each process
};

class LocalCluster {
 public:
  // Starts every process and waits until all are ready (CheckPorts first). On an error nothing is left
  // running: NOT_FOUND for a missing binary, DEADLINE_EXCEEDED, CANCELLED on a signal, and for a process that
  // ended the status of its exit code with its last line.
  static StatusOr<std::unique_ptr<LocalCluster>> Start(const ClusterPlan& plan, LocalClusterOptions options,
                                                       ShutdownSignal& shutdown);
  ~LocalCluster();  // kills what still runs

  // Moves the children's output along for up to `seconds`; those that ended.
  std::vector<ChildExit> Poll(double seconds);
  bool is_router_running() const { return children_.IsRunning(kRouterName); }
  const ClusterPlan& plan() const { return plan_; }

  // The router first, so that no new request comes in, then the workers; a second signal kills at once.
  void Stop();

 private:
  LocalCluster(const ClusterPlan& plan, LocalClusterOptions options, ShutdownSignal& shutdown);
  Status StartAll();
  Status AwaitReady();

  const ClusterPlan plan_;
  const LocalClusterOptions options_;
  ShutdownSignal& shutdown_;  // of main
  std::unique_ptr<ConfigFolder> configs_;
  ChildProcesses children_;
};

// The folder that holds terrace-router and terrace-worker: `bin_dir` when given, else where `argv0` or this
// process's binary lies. NOT_FOUND names the places looked at.
StatusOr<std::string> FindBinaries(const std::string& bin_dir, const std::string& argv0);

}  // namespace terrace
