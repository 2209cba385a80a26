#include "tools/cli/launch/cluster_plan.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <filesystem>
#include <map>
#include <system_error>

#include "base/config.h"
#include "worker/engine/max_ranks.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr int kFirstLeaderPort = 8201;
constexpr size_t kMaxTierName = 64;

// The first tier that lists `address`; "" when none does.
std::string TierOf(const v1::RouterConfig& router, const std::string& address) {
  for (const v1::TierConfig& tier : router.tiers()) {
    if (std::find(tier.workers().begin(), tier.workers().end(), address) != tier.workers().end())
      return tier.name();
  }
  return "";
}

void Resolve(const fs::path& folder, std::string& file) {
  if (!file.empty() && !fs::path(file).is_absolute()) file = (folder / file).lexically_normal().string();
}

template <typename Tls>
void ResolveTls(const fs::path& folder, Tls& tls) {
  Resolve(folder, *tls.mutable_certificate_file());
  Resolve(folder, *tls.mutable_key_file());
}

void ResolveFiles(const fs::path& folder, v1::ClientTlsConfig& tls) {
  ResolveTls(folder, tls);
  Resolve(folder, *tls.mutable_ca_file());
}

void ResolveFiles(const fs::path& folder, v1::SpeculationConfig& speculation) {
  if (speculation.has_model()) Resolve(folder, *speculation.mutable_model());
  if (speculation.remote().has_tls()) ResolveFiles(folder, *speculation.mutable_remote()->mutable_tls());
}

void ResolveFiles(const fs::path& folder, v1::WorkerConfig& worker) {
  Resolve(folder, *worker.mutable_model());
  if (worker.engine().has_speculation())
    ResolveFiles(folder, *worker.mutable_engine()->mutable_speculation());
  if (worker.group().has_tls()) ResolveFiles(folder, *worker.mutable_group()->mutable_tls());
  if (!worker.has_tls()) return;
  ResolveTls(folder, *worker.mutable_tls());
  Resolve(folder, *worker.mutable_tls()->mutable_client_ca_file());
}

void ResolveFiles(const fs::path& folder, v1::RouterConfig& router) {
  if (router.listen().has_tls()) {
    ResolveTls(folder, *router.mutable_listen()->mutable_tls());
    Resolve(folder, *router.mutable_listen()->mutable_tls()->mutable_client_ca_file());
  }
  if (router.cluster().has_tls()) ResolveFiles(folder, *router.mutable_cluster()->mutable_tls());
  for (v1::TierConfig& tier : *router.mutable_tiers()) {
    for (std::string& file : *tier.mutable_manifests()) Resolve(folder, file);
    for (std::string& file : *tier.mutable_manifest_keys()) Resolve(folder, file);
  }
  for (v1::PolicyConfig& policy : *router.mutable_policies()) {
    Resolve(folder, *policy.mutable_calibration());
    if (policy.has_budget()) Resolve(folder, *policy.mutable_budget()->mutable_calibration());
  }
  if (router.has_auth()) {
    Resolve(folder, *router.mutable_auth()->mutable_keys_file());
    Resolve(folder, *router.mutable_auth()->mutable_cluster_secret_file());
  }
}

// All ranks of worker `index` are started here: the file only says how many there are.
Status ExpandGroup(int index, v1::WorkerConfig& worker) {
  v1::GroupConfig& group = *worker.mutable_group();
  if (group.has_rank() || group.has_environment()) {
    return FailedPrecondition("workers[", index,
                              "].group: ranks says how many there are; all are started, so "
                              "rank and environment have no meaning here");
  }
  const uint64_t tensor = group.has_tensor_parallel() ? group.tensor_parallel() : 1,
                 pipeline = group.has_pipeline_parallel() ? group.pipeline_parallel() : 1;
  if (!std::has_single_bit(tensor)) {
    return FailedPrecondition("workers[", index, "].group.tensor_parallel is ", tensor,
                              ", not a power of two");
  }
  if (pipeline == 0)
    return FailedPrecondition("workers[", index, "].group.pipeline_parallel is 0, not at least 1");
  if (!group.has_ranks()) {
    if (tensor * pipeline > kMaxRanks) {
      return FailedPrecondition("workers[", index, "].group: tensor_parallel ", tensor,
                                " x pipeline_parallel ", pipeline, " is ", tensor * pipeline, ", not in [1, ",
                                kMaxRanks, "]");
    }
    group.set_ranks(static_cast<uint32_t>(tensor * pipeline));
  }
  if (group.ranks() == 0 || group.ranks() > kMaxRanks) {
    return FailedPrecondition("workers[", index, "].group.ranks is ", group.ranks(), ", not in [1, ",
                              kMaxRanks, "]");
  }
  if (group.ranks() > 1 && !group.has_leader())
    group.set_leader(Concat("127.0.0.1:", kFirstLeaderPort + index));
  return Status();
}

StatusOr<ClusterPlan> Expand(v1::ClusterFile file, const fs::path& folder) {
  ClusterPlan plan;
  plan.router = std::move(*file.mutable_router());
  ResolveFiles(folder, plan.router);
  v1::ListenConfig& listen = *plan.router.mutable_listen();
  if (!listen.has_http()) listen.set_http("127.0.0.1:8080");
  if (!listen.has_grpc()) listen.set_grpc("127.0.0.1:8081");
  if (!listen.has_ops()) listen.set_ops("127.0.0.1:9090");
  if (listen.ops().empty())
    return FailedPrecondition("router.listen.ops must be on: readiness is asked there");

  std::map<std::string, int> replicas;  // by tier
  for (int i = 0; i < file.workers_size(); ++i) {
    v1::WorkerConfig& worker = *file.mutable_workers(i);
    if (worker.model().empty()) return FailedPrecondition("workers[", i, "].model is missing");
    ResolveFiles(folder, worker);
    if (!worker.has_grpc()) worker.set_grpc(Concat("127.0.0.1:", kFirstWorkerPort + i));
    if (!worker.has_ops()) worker.set_ops(Concat("127.0.0.1:", kFirstWorkerOpsPort + i));
    if (worker.ops().empty())
      return FailedPrecondition("workers[", i, "].ops must be on: readiness is asked there");
    if (worker.has_group()) RETURN_IF_ERROR(ExpandGroup(i, worker));

    const std::string tier = TierOf(plan.router, worker.grpc());
    std::string name;
    if (tier.empty()) {
      name = Concat("worker-", worker.grpc().substr(worker.grpc().rfind(':') + 1));
    } else {
      const int replica = ++replicas[tier];
      name = replica == 1 ? Concat("worker-", tier) : Concat("worker-", tier, "-", replica);
    }
    plan.workers.push_back({.name = std::move(name), .tier = tier, .config = std::move(worker)});
  }
  if (plan.workers.empty()) return FailedPrecondition("workers: at least one is needed");
  if (plan.router.tiers().empty()) return FailedPrecondition("router.tiers: at least one is needed");
  return plan;
}

// A folder's or file's name as a tier name: [a-z0-9._-]{1,64}, without ".gguf".
std::string TierNameFor(const fs::path& model) {
  std::string name = model.extension() == ".gguf" ? model.stem().string() : model.filename().string();
  for (char& c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    const bool is_allowed =
        (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
    if (!is_allowed) c = '-';
  }
  name.resize(std::min(name.size(), kMaxTierName));
  return name.empty() ? "model" : name;
}

}  // namespace

std::vector<PortUse> ClusterPlan::ports() const {
  std::vector<PortUse> uses;
  const auto add = [&uses](const std::string& address, std::string key) {
    if (!address.empty()) uses.push_back({.address = address, .key = std::move(key)});
  };
  add(router.listen().http(), "router.listen.http");
  add(router.listen().grpc(), "router.listen.grpc");
  add(router.listen().ops(), "router.listen.ops");
  for (size_t i = 0; i < workers.size(); ++i) {
    add(workers[i].config.grpc(), Concat("workers[", i, "].grpc"));
    add(workers[i].config.ops(), Concat("workers[", i, "].ops"));
    add(workers[i].config.group().leader(), Concat("workers[", i, "].group.leader"));
  }
  return uses;
}

std::vector<WorkerPlan> FollowersOf(const WorkerPlan& leader) {
  std::vector<WorkerPlan> followers;
  for (uint32_t rank = 1; rank < leader.ranks(); ++rank) {
    WorkerPlan& follower = followers.emplace_back(leader);
    follower.name += Concat("-rank-", rank);
    follower.tier.clear();
    follower.config.clear_grpc();
    follower.config.clear_ops();
    follower.config.clear_tls();
    if (follower.config.has_engine()) follower.config.mutable_engine()->clear_speculation();
    follower.config.mutable_group()->set_rank(rank);
    follower.config.mutable_group()->clear_follower_ops();  // all of them would listen there
  }
  return followers;
}

StatusOr<ClusterPlan> PlanFromFile(const std::string& file) {
  v1::ClusterFile parsed;
  RETURN_IF_ERROR(LoadYamlFile(file, parsed));
  return PlanFor(std::move(parsed), file);
}

StatusOr<ClusterPlan> PlanFor(v1::ClusterFile parsed, const std::string& file) {
  std::error_code error;
  const fs::path path = fs::absolute(file, error);
  if (error) return NotFound(file, ": ", error.message());
  StatusOr<ClusterPlan> plan = Expand(std::move(parsed), path.parent_path());
  if (!plan.ok()) return Annotate(plan.status(), file);
  return plan;
}

StatusOr<ClusterPlan> PlanForModel(const std::string& model_path) {
  std::error_code error;
  const fs::path model = fs::canonical(model_path, error);
  if (error) return NotFound(model_path, ": ", error.message());
  v1::ClusterFile file;
  file.add_workers()->set_model(model.string());
  v1::TierConfig& tier = *file.mutable_router()->add_tiers();
  tier.set_name(TierNameFor(model));
  tier.add_workers(Concat("127.0.0.1:", kFirstWorkerPort));
  return Expand(std::move(file), model.parent_path());
}

void ShareCores(ClusterPlan& plan, uint32_t cores) {
  uint32_t taken = 0, sharing = 0;
  for (const WorkerPlan& worker : plan.workers) {
    const v1::EngineConfig& engine = worker.config.engine();
    (engine.has_threads() ? taken : sharing) +=
        worker.ranks() * (engine.has_threads() ? engine.threads() : 1);
  }
  for (WorkerPlan& worker : plan.workers) {
    if (worker.config.engine().has_threads()) continue;
    const uint32_t left = cores > taken ? cores - taken : 0;
    worker.config.mutable_engine()->set_threads(std::max(1u, left / sharing));
  }
}

}  // namespace terrace
