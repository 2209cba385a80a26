#include "tools/cli/up.h"

#include "tools/cli/format.h"

namespace terrace {
namespace {

std::string Summary(const ClusterPlan& plan, const CommandContext& context) {
  std::vector<std::vector<std::string>> rows = {
      {"tier", "workers", "$/M prompt tokens", "$/M answer tokens"}};
  for (const v1::TierConfig& tier : plan.router.tiers()) {
    std::string workers;
    for (const std::string& worker : tier.workers()) workers += Concat(workers.empty() ? "" : " ", worker);
    rows.push_back({tier.name(), workers, FormatFixed(tier.usd_per_million_prompt_tokens(), 4),
                    FormatFixed(tier.usd_per_million_completion_tokens(), 4)});
  }
  const v1::ListenConfig& listen = plan.router.listen();
  std::string out = Concat("\n", FormatTable(rows, 2));
  for (const v1::PolicyConfig& policy : plan.router.policies()) {
    std::string steps;
    for (const v1::CascadeStep& step : policy.cascade().steps()) {
      steps += Concat(steps.empty() ? "" : " -> ", step.tier());
    }
    if (policy.has_verify())
      steps = Concat(policy.verify().draft(), ", verified by ", policy.verify().tier());
    if (!policy.calibration().empty()) steps = policy.calibration();
    for (const v1::BudgetCandidate& each : policy.budget().candidates())
      steps += Concat(steps.empty() ? "" : " or ", each.tier());
    out += Concat("policy ", policy.name(), ": ", steps, "\n");
  }
  if (!listen.http().empty()) out += Concat("OpenAI API  http://", ClientAddress(listen.http()), "/v1\n");
  if (!listen.grpc().empty()) out += Concat("gRPC        ", ClientAddress(listen.grpc()), "\n");
  out += Concat("metrics     http://", ClientAddress(listen.ops()), "/metrics\n");
  const std::string curl = CurlExample(plan, "Sort these words: Keiko, Jonas, Jack");
  if (!curl.empty()) out += Concat("try         ", curl, "\n");
  return Concat(out, context.Bold("ready"), "; Ctrl-C stops everything\n");
}

}  // namespace

Status RunUp(const UpOptions& options, const CommandContext& context) {
  const StatusOr<std::unique_ptr<LocalCluster>> launched = Launch(options.launch, context);
  if (launched.status().code() == StatusCode::kCancelled) return Status();  // Ctrl-C before all was ready
  RETURN_IF_ERROR(launched.status());
  LocalCluster& cluster = **launched;
  context.out << Summary(cluster.plan(), context) << std::flush;
  const Status status = WatchUntilSignal(cluster, context);
  context.out << "stopping: answers under way may end; Ctrl-C again ends them\n" << std::flush;
  cluster.Stop();
  return status;
}

}  // namespace terrace
