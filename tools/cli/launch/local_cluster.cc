#include "tools/cli/launch/local_cluster.h"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <system_error>

#include "base/clock.h"
#include "base/exit_code.h"
#include "base/http_server.h"
#include "base/json.h"
#include "tools/cli/launch/program_folders.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr double kReadyPollSeconds = 0.05;
constexpr double kReadyRequestSeconds = 1;
constexpr char kRouterBinary[] = "terrace-router";
constexpr char kWorkerBinary[] = "terrace-worker";
constexpr double kRouterEndSeconds = 5;  // that a router may take when its drain_seconds are over
constexpr Duration kAskEvery = std::chrono::seconds(1);  // a group that forms again
// For how long others of a group may end before the one that was the first to fail.
constexpr double kCauseSeconds = 1;

// The status of a process that ended before it was ready: its exit code says what kind of error, its last
// line which.
Status EndedEarly(const ChildExit& exit) {
  const std::string message =
      Concat(exit.Describe(), exit.last_lines.empty() ? "" : Concat(": ", exit.last_lines.back()));
  switch (exit.exit_code) {
    case kExitData:
      return DataLoss(message);
    case kExitNoInput:
      return NotFound(message);
    case kExitUnavailable:
      return Unavailable(message);
    case kExitUsage:  // the one argument is the configuration
    case kExitConfig:
      return FailedPrecondition(message);
    default:
      return Internal(message);
  }
}

// An exit that may be no more than the answer to another one's.
bool MayFollow(const ChildExit& exit) {
  return exit.signal == 0 && (exit.exit_code == kExitOk || exit.exit_code == kExitUnavailable);
}

// The answer of a process that is ready.
StatusOr<std::string> Readiness(const std::string& ops) {
  return HttpGet(ClientAddress(ops) + "/readyz", kReadyRequestSeconds);
}

// Whether the router, by its answer to /readyz, has a worker for every tier that this cluster starts one for.
// A tier whose model no manifest lets in will not have one: others answer, and the router's log says why.
bool HasEveryTier(const ClusterPlan& plan, const std::string& readiness) {
  const StatusOr<Json> json = ParseJson(readiness);
  if (!json.ok() || !json->contains("tiers_not_ready")) return false;
  const Json& not_ready = (*json)["tiers_not_ready"];
  const Json refused = json->value("tiers_refused", Json::object());
  return json->value("ready", false) &&
         std::none_of(plan.workers.begin(), plan.workers.end(), [&](const WorkerPlan& worker) {
           return std::find(not_ready.begin(), not_ready.end(), worker.tier) != not_ready.end() &&
                  !refused.contains(worker.tier);
         });
}

}  // namespace

const ChildExit& LikelyCause(std::span<const ChildExit> exits, const ClusterPlan& plan) {
  const auto order = [&plan](const ChildExit& exit) {
    if (!MayFollow(exit)) return 0;
    const bool leads = exit.name == kRouterName ||
                       std::ranges::find(plan.workers, exit.name, &WorkerPlan::name) != plan.workers.end();
    return leads ? 1 : 2;
  };
  return *std::ranges::min_element(exits, {}, order);
}

LocalCluster::LocalCluster(const ClusterPlan& plan, LocalClusterOptions options, ShutdownSignal& shutdown)
    : plan_(plan), options_(std::move(options)), shutdown_(shutdown), children_(options_.on_line) {}

LocalCluster::~LocalCluster() = default;

StatusOr<std::unique_ptr<LocalCluster>> LocalCluster::Start(const ClusterPlan& plan,
                                                            LocalClusterOptions options,
                                                            ShutdownSignal& shutdown) {
  std::unique_ptr<LocalCluster> cluster(new LocalCluster(plan, std::move(options), shutdown));
  RETURN_IF_ERROR(cluster->StartAll());
  return cluster;
}

Status LocalCluster::StartAll() {
  ASSIGN_OR_RETURN(configs_, ConfigFolder::Make());
  for (const WorkerPlan& worker : plan_.workers) {
    RETURN_IF_ERROR(StartWorker(worker));
    if (worker.ranks() == 1) continue;
    Group& group = groups_.emplace_back(Group{
        .name = worker.name,
        .members = {worker.name},
        .recovery = GroupRecovery(GroupRecovery::Options{.ready_seconds = options_.ready_timeout_seconds})});
    for (const WorkerPlan& follower : FollowersOf(worker)) group.members.push_back(follower.name);
  }
  RETURN_IF_ERROR(StartProcess(kRouterName, kRouterBinary, plan_.router));
  return AwaitReady();
}

template <typename Config>
Status LocalCluster::StartProcess(const std::string& name, const char* binary, Config config) {
  if (!config.log().has_format() && !options_.log_format.empty()) {
    config.mutable_log()->set_format(options_.log_format);
  }
  ASSIGN_OR_RETURN(const std::string file, configs_->Write(name, config));
  return children_.Start({.name = name, .argv = {fs::path(options_.bin_dir) / binary, "--config", file}});
}

// With the other ranks of its group.
Status LocalCluster::StartWorker(const WorkerPlan& worker) {
  RETURN_IF_ERROR(StartProcess(worker.name, kWorkerBinary, worker.config));
  for (const WorkerPlan& follower : FollowersOf(worker))
    RETURN_IF_ERROR(StartProcess(follower.name, kWorkerBinary, follower.config));
  return Status();
}

// Workers before the router: its answer is about them.
Status LocalCluster::AwaitReady() {
  std::vector<std::pair<std::string, std::string>> waiting;  // name, ops address
  for (const WorkerPlan& worker : plan_.workers) waiting.emplace_back(worker.name, worker.config.ops());
  waiting.emplace_back(kRouterName, plan_.router.listen().ops());

  const MonoTime start = RealClock().Now();
  while (!waiting.empty()) {
    if (std::vector<ChildExit> exits = children_.Poll(kReadyPollSeconds); !exits.empty())
      return StartFailed(std::move(exits));
    if (shutdown_.WaitFor(0) != 0) return Cancelled("interrupted");
    std::erase_if(waiting, [&](const auto& process) {
      const bool is_router = process.first == kRouterName;
      if (is_router && waiting.size() > 1) return false;
      const auto answer = Readiness(process.second);
      const bool is_ready = answer.ok() && (!is_router || HasEveryTier(plan_, *answer));
      if (is_ready) options_.on_ready(process.first);
      return is_ready;
    });
    if (!waiting.empty() && Seconds(RealClock().Now() - start) > options_.ready_timeout_seconds) {
      return DeadlineExceeded(waiting.front().first, " is not ready after ", options_.ready_timeout_seconds,
                              " s");
    }
  }
  return Status();
}

// `exits` are the first. Where there are groups the cause may end a little later than what it causes.
Status LocalCluster::StartFailed(std::vector<ChildExit> exits) {
  const MonoTime start = RealClock().Now();
  while (!groups_.empty() && std::ranges::all_of(exits, MayFollow) &&
         Seconds(RealClock().Now() - start) < kCauseSeconds) {
    for (ChildExit& exit : children_.Poll(kReadyPollSeconds)) exits.push_back(std::move(exit));
  }
  return EndedEarly(LikelyCause(exits, plan_));
}

std::vector<ChildExit> LocalCluster::Poll(double seconds) {
  std::vector<ChildExit> exits = children_.Poll(seconds);
  for (Group& group : groups_) TendGroup(group, exits);
  return exits;
}

AfterEnd LocalCluster::AfterEndOf(const std::string& name) const {
  const auto group = std::ranges::find_if(groups_, [&](const Group& each) {
    return std::ranges::find(each.members, name) != each.members.end();
  });
  if (group == groups_.end()) return AfterEnd::kNothing;
  const GroupRecovery& recovery = group->recovery;
  const bool waits = recovery.is_broken() && recovery.wait_seconds(RealClock().Now()) > 0;
  return waits ? AfterEnd::kGroupWaits : AfterEnd::kGroupIsStartedAgain;
}

// `exits`: of this poll; those that are killed here join them.
void LocalCluster::TendGroup(Group& group, std::vector<ChildExit>& exits) {
  const MonoTime now = RealClock().Now();
  AskWhetherReady(group, now);
  const std::vector<std::string> running = RunningOf(group);
  const auto tell = [&](const auto&... text) {
    options_.on_group(Concat(group.name, ": its group ", text...));
  };
  switch (group.recovery.Next(running.size(), group.members.size(), now)) {
    case GroupRecovery::Action::kNone:
      return;
    case GroupRecovery::Action::kKillUnready:
      tell("was started again and is not ready after ", options_.ready_timeout_seconds,
           " s: its processes are killed");
      return Kill(running, exits);
    case GroupRecovery::Action::kKill:
      return Kill(running, exits);
    case GroupRecovery::Action::kWait:
      return tell("breaks too often; it is started again in ", std::ceil(group.recovery.wait_seconds(now)),
                  " s");
    case GroupRecovery::Action::kStart:
      return Restart(group, now, exits);
  }
}

// A second behind the last answer, as a leader that hangs takes as long to not answer.
void LocalCluster::AskWhetherReady(Group& group, MonoTime now) {
  if (!group.recovery.is_forming() || now - group.asked < kAskEvery) return;
  const bool is_ready = Readiness(LeaderOf(group).config.ops()).ok();
  group.asked = RealClock().Now();
  if (!is_ready) return;
  group.recovery.OnReady();
  options_.on_group(Concat(group.name, ": its group is ready again"));
}

const WorkerPlan& LocalCluster::LeaderOf(const Group& group) const {
  return *std::ranges::find(plan_.workers, group.name, &WorkerPlan::name);
}

std::vector<std::string> LocalCluster::RunningOf(const Group& group) const {
  std::vector<std::string> running = group.members;
  std::erase_if(running, [this](const std::string& name) { return !children_.IsRunning(name); });
  return running;
}

// `exits`: theirs, and of whatever else ended meanwhile, join them.
void LocalCluster::Kill(const std::vector<std::string>& names, std::vector<ChildExit>& exits) {
  for (ChildExit& exit : children_.Stop(names, /*grace_seconds=*/0, [] { return true; }))
    exits.push_back(std::move(exit));
}

// `exits`: where it cannot be started, those of the ranks that were join them.
void LocalCluster::Restart(Group& group, MonoTime now, std::vector<ChildExit>& exits) {
  const Status started = StartWorker(LeaderOf(group));
  if (started.ok()) {
    group.recovery.OnStarted(now);
    return options_.on_group(
        Concat(group.name, ": its group is started again, with all ", group.members.size(), " ranks"));
  }
  Kill(RunningOf(group), exits);      // some would wait for the others
  group.recovery.OnStartFailed(now);  // the binary is gone, or the disk is full
  options_.on_group(Concat(group.name, ": its group cannot be started again: ", Message(started),
                           "; it is tried again in ", group.recovery.wait_seconds(now), " s"));
}

void LocalCluster::Stop() {
  // A second signal ends everything that is left at once; but a terminal that is closed hangs up twice.
  bool is_urgent_now = false;
  const auto is_urgent = [&] {
    const int signal = shutdown_.WaitFor(0);
    return is_urgent_now = is_urgent_now || (signal != 0 && signal != SIGHUP);
  };
  const double router_grace =
      std::max(options_.stop_grace_seconds, plan_.router.drain_seconds() + kRouterEndSeconds);
  if (is_router_running()) children_.Stop({kRouterName}, router_grace, is_urgent);
  children_.Stop(children_.running(), options_.stop_grace_seconds, is_urgent);
}

StatusOr<std::string> FindBinaries(const std::string& bin_dir, const std::string& argv0) {
  const std::vector<std::string> places =
      bin_dir.empty() ? ProgramFolders(argv0) : std::vector<std::string>{bin_dir};
  std::error_code error;
  std::string looked_at;
  for (const std::string& place : places) {
    if (fs::exists(fs::path(place) / kRouterBinary, error) &&
        fs::exists(fs::path(place) / kWorkerBinary, error))
      return place;
    looked_at += Concat(looked_at.empty() ? "" : ", ", place);
  }
  return NotFound("no ", kRouterBinary, " and ", kWorkerBinary, " in ", looked_at,
                  ": name their folder with --bin-dir");
}

}  // namespace terrace
