#include "tools/cli/validate.h"

#include <fstream>
#include <string>
#include <vector>

#include "base/config.h"
#include "proto/terrace/v1/config.pb.h"
#include "router/manifest/manifest_gate.h"
#include "text/text_assets.h"
#include "tools/cli/launch/child_process.h"
#include "tools/cli/launch/cluster_plan.h"
#include "tools/cli/launch/config_folder.h"
#include "tools/cli/launch/local_cluster.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

constexpr double kPollSeconds = 0.1;

struct Check {
  std::string name, binary, file;
};

// By the file's top-level keys, whatever is wrong behind them; a router's when they tell nothing.
std::string KindOf(const std::string& file) {
  v1::ClusterFile cluster;
  v1::WorkerConfig worker;
  if (LoadYamlFile(file, cluster).ok()) return "cluster";
  if (LoadYamlFile(file, worker).ok()) return "worker";
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("router:") || line.starts_with("workers:")) return "cluster";
    if (line.starts_with("model:")) return "worker";
  }
  return "router";
}

// A cluster file is what `terrace up` makes of it: one file a process, kept in `folder`.
StatusOr<std::vector<Check>> MakeChecks(const std::string& file, const std::string& kind,
                                        const std::string& bin_dir, ConfigFolder& folder) {
  const std::string router = bin_dir + "/terrace-router", worker = bin_dir + "/terrace-worker";
  if (kind == "router") return std::vector<Check>{{"router", router, file}};
  if (kind == "worker") return std::vector<Check>{{"worker", worker, file}};
  ASSIGN_OR_RETURN(const ClusterPlan plan, PlanFromFile(file));
  std::vector<Check> checks;
  ASSIGN_OR_RETURN(const std::string router_file, folder.Write(kRouterName, plan.router));
  checks.push_back({kRouterName, router, router_file});
  for (const WorkerPlan& one : plan.workers) {
    ASSIGN_OR_RETURN(const std::string worker_file, folder.Write(one.name, one.config));
    checks.push_back({one.name, worker, worker_file});
  }
  return checks;
}

// What a running router would say of the models: a worker tells of no other than its files are.
size_t CountRefused(const ClusterPlan& plan, const CommandContext& context) {
  size_t refused = 0;
  for (const v1::TierConfig& tier : plan.router.tiers()) {
    if (!tier.require_manifest()) continue;
    const auto gate =
        ManifestGate::Load({.files = {tier.manifests().begin(), tier.manifests().end()},
                            .key_files = {tier.manifest_keys().begin(), tier.manifest_keys().end()},
                            .baseline = tier.manifest_baseline()});
    if (!gate.ok()) continue;  // the router has said so
    for (const WorkerPlan& worker : plan.workers) {
      if (worker.tier != tier.name()) continue;
      const auto model = OpenModel(worker.config.model());
      const Status verdict =
          model.ok() ? (*gate)->Check(model->digest.Hex(), Digest(*model->text).Hex()) : model.status();
      if (verdict.ok()) continue;
      ++refused;
      context.out << worker.name << ": refused: " << Message(verdict) << "\n";
    }
  }
  return refused;
}

}  // namespace

Status RunValidate(const ValidateOptions& options, const CommandContext& context) {
  ASSIGN_OR_RETURN(const std::string bin_dir, FindBinaries(options.bin_dir, context.argv0));
  ASSIGN_OR_RETURN(const auto folder, ConfigFolder::Make());
  const std::string kind = options.kind.empty() ? KindOf(options.file) : options.kind;
  ASSIGN_OR_RETURN(const std::vector<Check> checks, MakeChecks(options.file, kind, bin_dir, *folder));
  size_t wrong = 0;
  for (const Check& check : checks) {
    ChildProcesses children([&](const std::string& name, const std::string& line) {
      context.out << name << ": " << line << "\n";
    });
    RETURN_IF_ERROR(children.Start({check.name, {check.binary, "--validate", "--config", check.file}}));
    std::vector<ChildExit> ended;
    while (ended.empty()) ended = children.Poll(kPollSeconds);
    wrong += ended[0].exit_code != 0 || ended[0].signal != 0;
  }
  size_t refused = 0;
  if (kind == "cluster") {
    ASSIGN_OR_RETURN(const ClusterPlan plan, PlanFromFile(options.file));
    refused = CountRefused(plan, context);
  }
  if (wrong == 0 && refused == 0) return {};
  if (wrong == 0)
    return FailedPrecondition(options.file, ": ", refused, " workers would be refused by their tier");
  return FailedPrecondition(options.file, ": ", wrong, " of ", checks.size(), " processes would not start");
}

}  // namespace terrace
