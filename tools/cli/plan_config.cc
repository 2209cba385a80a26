#include "tools/cli/plan_config.h"

#include <algorithm>

#include "base/status.h"
#include "tools/cli/launch/ports.h"

namespace terrace {
namespace {

constexpr char kPolicy[] = "planned";

void SetSpeculation(const ServingSettings& settings, const PlannedWorker& worker, v1::EngineConfig& engine) {
  if (worker.drafter == "none" || settings.drafts.length == 0) return;
  v1::SpeculationConfig& speculation = *engine.mutable_speculation();
  speculation.set_drafter(worker.drafter);
  speculation.set_max_tokens(settings.drafts.length);
  if (worker.drafter != "model") return;
  speculation.set_model(worker.draft_model);
  speculation.set_kv_pool_bytes(settings.kv_tokens * worker.draft_kv_bytes_per_token);
}

// `index`: among all workers.
v1::WorkerConfig WorkerOf(const ServingSettings& settings, const PlannedWorker& worker, uint32_t index) {
  v1::WorkerConfig config;
  config.set_model(worker.model);
  config.set_grpc(Concat("127.0.0.1:", kFirstWorkerPort + index));
  config.set_ops(Concat("127.0.0.1:", kFirstWorkerOpsPort + index));
  v1::EngineConfig& engine = *config.mutable_engine();
  if (worker.threads > 0) engine.set_threads(std::max(worker.threads / worker.ranks, 1u));
  engine.set_max_sequences(settings.max_sequences);
  engine.set_max_step_tokens(settings.max_step_tokens);
  engine.set_device(worker.ranks > 1 ? "cpu" : worker.device);  // groups are of CPUs
  if (worker.ranks > 1) config.mutable_group()->set_ranks(worker.ranks);
  engine.set_compute(worker.compute);
  SetSpeculation(settings, worker, engine);
  v1::KvConfig& kv = *config.mutable_kv();
  kv.set_dtype(worker.kv_dtype);
  kv.set_block_tokens(settings.block_tokens);
  kv.set_pool_bytes(settings.kv_tokens * worker.kv_bytes_per_token);
  return config;
}

}  // namespace

v1::ClusterFile ClusterOf(const PlannedServing& plan, std::span<const PlannedWorker> workers,
                          double min_mean_logprob) {
  CHECK(workers.size() == plan.tiers.size(), workers.size(), " of ", plan.tiers.size(), " tiers");
  v1::ClusterFile file;
  v1::RouterConfig& router = *file.mutable_router();
  for (size_t i = 0; i < workers.size(); ++i) {
    v1::TierConfig& tier = *router.add_tiers();
    tier.set_name(workers[i].name);
    tier.set_usd_per_million_prompt_tokens(TierPrice(plan, i));
    tier.set_usd_per_million_completion_tokens(TierPrice(plan, i));
    for (uint32_t replica = 0; replica < plan.tiers[i].workers; ++replica) {
      const auto index = static_cast<uint32_t>(file.workers_size());
      v1::WorkerConfig& config = *file.add_workers();
      config = WorkerOf(plan.tiers[i].settings, workers[i], index);
      tier.add_workers(config.grpc());
    }
  }
  if (workers.size() == 1) return file;
  v1::PolicyConfig& policy = *router.add_policies();
  policy.set_name(kPolicy);
  for (size_t i = 0; i < workers.size(); ++i) {
    v1::CascadeStep& step = *policy.mutable_cascade()->add_steps();
    step.set_tier(workers[i].name);
    if (i + 1 < workers.size()) step.set_min_mean_logprob(min_mean_logprob);
  }
  router.set_default_model(kPolicy);
  return file;
}

}  // namespace terrace
