#include "tools/cli/validate.h"

#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/config.h"
#include "base/exit_code.h"
#include "proto/terrace/v1/config.pb.h"
#include "router/manifest/manifest_gate.h"
#include "text/text_assets.h"
#include "tools/cli/format.h"
#include "tools/cli/launch/child_process.h"
#include "tools/cli/launch/cluster_plan.h"
#include "tools/cli/launch/config_folder.h"
#include "tools/cli/launch/local_cluster.h"
#include "tools/cli/launch/ports.h"
#include "tools/cli/verdict.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

constexpr double kPollSeconds = 0.1;
constexpr char kRouterBinary[] = "/terrace-router", kWorkerBinary[] = "/terrace-worker";

// A file for a binary, and the user's file that it was made of, or is.
struct CheckedFile {
  std::string path = {}, given = {};
};

struct Check {
  std::string name, binary;
  CheckedFile file;
  CheckedFile running = {};  // of the router that is to change to it; no path: none is
};

// Of a file that is no valid cluster's, by its top-level keys, whatever is wrong behind them; a router's when
// they tell nothing.
std::string KindOf(const std::string& file) {
  v1::WorkerConfig worker;
  if (LoadYamlFile(file, worker).ok()) return "worker";
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("router:") || line.starts_with("workers:")) return "cluster";
    if (line.starts_with("model:")) return "worker";
  }
  return "router";
}

// A cluster file is what `terrace up` makes of it: one file a process, kept in `folder`. `given` is its name.
StatusOr<std::vector<Check>> ChecksOf(const ClusterPlan& plan, const std::string& given,
                                      const std::string& bin_dir, ConfigFolder& folder) {
  const std::string router = bin_dir + kRouterBinary, worker = bin_dir + kWorkerBinary;
  std::vector<Check> checks;
  ASSIGN_OR_RETURN(const std::string router_file, folder.Write(kRouterName, plan.router));
  checks.push_back({kRouterName, router, {router_file, given}});
  for (const WorkerPlan& one : plan.workers) {
    ASSIGN_OR_RETURN(const std::string worker_file, folder.Write(one.name, one.config));
    checks.push_back({one.name, worker, {worker_file, given}});
  }
  return checks;
}

// The router's part of the cluster file that runs, kept in `folder`.
StatusOr<CheckedFile> RunningRouterOf(const std::string& given, ConfigFolder& folder) {
  v1::ClusterFile cluster;
  RETURN_IF_ERROR(LoadYamlFile(given, cluster));
  ASSIGN_OR_RETURN(const ClusterPlan plan, PlanFor(std::move(cluster), given));
  ASSIGN_OR_RETURN(std::string path, folder.Write("running", plan.router));
  return CheckedFile{std::move(path), given};
}

// What the worker will say; keys and values of "auto" are of a device's choice, which rounds to 16 bits at
// most.
Arithmetic ArithmeticOf(const v1::WorkerConfig& worker) {
  const bool is_chosen = worker.kv().dtype() != "auto";
  return {.compute = worker.engine().has_compute() ? worker.engine().compute() : std::string_view("auto"),
          .kv_dtype = is_chosen ? worker.kv().dtype() : std::string_view()};
}

struct ModelVerdicts {
  size_t refused = 0, unusable = 0;  // workers, by a manifest, and whose model cannot be opened
};

// What a running router would say of the models: a worker tells of no other than its files are. Of tiers that
// ask for manifests.
ModelVerdicts JudgeModels(const ClusterPlan& plan, const CommandContext& context) {
  ModelVerdicts out;
  for (const v1::TierConfig& tier : plan.router.tiers()) {
    if (!tier.require_manifest()) continue;
    const auto gate = ManifestGate::Load(GateOptionsOf(tier));
    if (!gate.ok()) continue;  // the router has said so
    for (const WorkerPlan& worker : plan.workers) {
      if (worker.tier != tier.name()) continue;
      const auto model = OpenModel(worker.config.model());
      const Status verdict = model.ok() ? (*gate)->Check(model->digest.Hex(), Digest(*model->text).Hex(),
                                                         ArithmeticOf(worker.config))
                                        : model.status();
      if (verdict.ok()) continue;
      ++(model.ok() ? out.refused : out.unusable);
      context.out << worker.name << (model.ok() ? ": refused: " : ": ") << Message(verdict) << "\n";
    }
  }
  return out;
}

// What a binary said, with the user's file for the one that was made of it.
std::string WithGivenFile(const CheckedFile& file, std::string line) {
  if (file.path == file.given) return line;
  for (size_t at = 0; (at = line.find(file.path, at)) != std::string::npos; at += file.given.size())
    line.replace(at, file.path.size(), file.given);
  return line;
}

// What the binary itself says of the file, and how it ended.
StatusOr<ChildExit> RunCheck(const Check& check, const CommandContext& context) {
  ChildProcesses children([&](const std::string& name, const std::string& line) {
    context.out << name << ": " << WithGivenFile(check.running, WithGivenFile(check.file, line)) << "\n";
  });
  std::vector<std::string> argv = {check.binary, "--validate", "--config", check.file.path};
  if (!check.running.path.empty()) argv.insert(argv.end(), {"--running", check.running.path});
  RETURN_IF_ERROR(children.Start({check.name, std::move(argv)}));
  std::vector<ChildExit> ended;
  while (ended.empty()) {
    if (context.shutdown.WaitFor(0) != 0) return Cancelled("interrupted");
    ended = children.Poll(kPollSeconds);
  }
  return ended.front();
}

}  // namespace

Status RunValidate(const ValidateOptions& options, const CommandContext& context) {
  ASSIGN_OR_RETURN(const std::string bin_dir, FindBinaries(options.bin_dir, context.argv0));
  ASSIGN_OR_RETURN(const auto folder, ConfigFolder::Make());
  v1::ClusterFile cluster;
  const Status as_cluster = LoadYamlFile(options.file, cluster);
  if (as_cluster.code() == StatusCode::kNotFound || as_cluster.code() == StatusCode::kUnavailable)
    return as_cluster;
  const std::string kind = !options.kind.empty() ? options.kind
                           : as_cluster.ok()     ? "cluster"
                                                 : KindOf(options.file);
  if (!options.running.empty() && kind == "worker")
    return InvalidArgument("--running: ", options.file,
                           " is a worker's, which changes nothing while it runs");
  std::optional<ClusterPlan> plan;
  std::vector<Check> checks = {{.name = kind,
                                .binary = bin_dir + (kind == "worker" ? kWorkerBinary : kRouterBinary),
                                .file = {options.file, options.file},
                                .running = {options.running, options.running}}};
  if (kind == "cluster") {
    RETURN_IF_ERROR(as_cluster);
    ASSIGN_OR_RETURN(plan, PlanFor(std::move(cluster), options.file));
    ASSIGN_OR_RETURN(checks, ChecksOf(*plan, options.file, bin_dir, *folder));
    if (!options.running.empty()) {
      ASSIGN_OR_RETURN(checks.front().running, RunningRouterOf(options.running, *folder));  // the router's
    }
  }
  const Status clash = plan.has_value() ? CheckAddresses(plan->ports()) : Status();
  if (!clash.ok()) context.out << kind << ": " << Message(clash) << "\n";
  size_t wrong = 0;
  bool is_refusing = false;
  for (const Check& check : checks) {
    ASSIGN_OR_RETURN(const ChildExit end, RunCheck(check, context));
    const bool is_refusal = end.signal == 0 && end.exit_code == kExitFailure;  // what it says of manifests
    is_refusing |= is_refusal;
    wrong += !is_refusal && (end.signal != 0 || end.exit_code != kExitOk);
  }
  const ModelVerdicts models = plan.has_value() ? JudgeModels(*plan, context) : ModelVerdicts();
  if (wrong == 0) wrong = models.unusable;  // else it may have been counted
  if (wrong > 0)
    return FailedPrecondition(options.file, ": ", wrong, " of ", checks.size(), " processes would not start",
                              options.running.empty() ? "" : " with it, or change to it");
  if (!clash.ok()) return Annotate(clash, options.file);
  if (models.refused > 0)
    return AnswerIsNo(options.file, ": would start, but ", FormatCount(models.refused, "worker"),
                      " would be refused by manifests");
  if (is_refusing) return AnswerIsNo(options.file, ": would start, but a tier's manifests let no model in");
  return {};
}

}  // namespace terrace
