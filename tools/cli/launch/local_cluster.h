// A router and its workers as child processes of this one: started together, watched, stopped in order. Used
// by the thread that made it. A group of ranks that breaks, because one of its processes ended, is started
// again: its other processes end by themselves, or are killed after a while (GroupRecovery).
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/shutdown.h"
#include "base/status.h"
#include "tools/cli/launch/child_process.h"
#include "tools/cli/launch/cluster_plan.h"
#include "tools/cli/launch/config_folder.h"
#include "tools/cli/launch/group_recovery.h"

namespace terrace {

inline constexpr char kRouterName[] = "router";  // of the router's child process

struct LocalClusterOptions {
  std::string bin_dir;                 // holds terrace-router and terrace-worker
  std::string log_format;              // of processes whose configuration names none; "": their default
  double ready_timeout_seconds = 120;  // of the start, and of every group that is started again
  // The router, which stops first, lets answers end for 30 s. It gets more when its drain_seconds are more.
  double stop_grace_seconds = 35;
  ChildProcesses::OnLine on_line = [](const std::string&, const std::string&) {};
  // Once for each process that answers, the router and workers.
  std::function<void(const std::string& name)> on_ready = [](const std::string&) {};
  // What becomes of a group that broke, in one line.
  std::function<void(const std::string& line)> on_group = [](const std::string&) {};
};

// Of `exits`, not empty: the one that tells most of why a start failed. A group ends with every process that
// it loses, so a rank that found nothing but the others gone, or was told to end, tells least, its leader
// more.
const ChildExit& LikelyCause(std::span<const ChildExit> exits, const ClusterPlan& plan);

// What becomes of a process that ended: nothing, or, of a rank, of its group.
enum class AfterEnd { kNothing, kGroupIsStartedAgain, kGroupWaits };

class LocalCluster {
 public:
  // Starts every process and waits until all are ready (CheckPorts first). On an error nothing is left
  // running: NOT_FOUND for a missing binary, DEADLINE_EXCEEDED, CANCELLED on a signal, and for a process that
  // ended the status of its exit code with its last line.
  static StatusOr<std::unique_ptr<LocalCluster>> Start(const ClusterPlan& plan, LocalClusterOptions options,
                                                       ShutdownSignal& shutdown);
  ~LocalCluster();  // kills what still runs

  // Moves the children's output along for up to `seconds`, and looks after groups; those that ended.
  std::vector<ChildExit> Poll(double seconds);
  // Of one that ended, as of the last Poll.
  AfterEnd AfterEndOf(const std::string& name) const;
  bool is_router_running() const { return children_.IsRunning(kRouterName); }
  const ClusterPlan& plan() const { return plan_; }

  // The router first, so that no new request comes in, then the workers; a second signal kills at once.
  void Stop();

 private:
  LocalCluster(const ClusterPlan& plan, LocalClusterOptions options, ShutdownSignal& shutdown);
  // A worker of several ranks.
  struct Group {
    std::string name;                  // of its leader
    std::vector<std::string> members;  // names of all its processes
    GroupRecovery recovery;
    MonoTime asked = {};  // whether it is ready, while it forms again
  };

  template <typename Config>
  Status StartProcess(const std::string& name, const char* binary, Config config);
  Status StartWorker(const WorkerPlan& worker);
  Status StartAll();
  Status AwaitReady();
  void TendGroup(Group& group, std::vector<ChildExit>& exits);
  void AskWhetherReady(Group& group, MonoTime now);
  void Restart(Group& group, MonoTime now, std::vector<ChildExit>& exits);
  const WorkerPlan& LeaderOf(const Group& group) const;
  std::vector<std::string> RunningOf(const Group& group) const;
  void Kill(const std::vector<std::string>& names, std::vector<ChildExit>& exits);
  Status StartFailed(std::vector<ChildExit> exits);

  const ClusterPlan plan_;
  const LocalClusterOptions options_;
  ShutdownSignal& shutdown_;  // of main
  std::unique_ptr<ConfigFolder> configs_;
  std::vector<Group> groups_;
  ChildProcesses children_;
};

// The folder that holds terrace-router and terrace-worker: `bin_dir` when given, else where `argv0` or this
// process's binary lies. NOT_FOUND names the places looked at.
StatusOr<std::string> FindBinaries(const std::string& bin_dir, const std::string& argv0);

}  // namespace terrace
