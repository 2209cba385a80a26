#include "router/server/ops_handler.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/host_port.h"
#include "base/version.h"
#include "router/manifest/manifest.h"

namespace terrace {
namespace {

using Labels = std::vector<std::string>;

Json ReplicaJson(const ReplicaView& replica) {
  return {{"address", replica.address},
          {"state", ReplicaStateName(replica.state)},
          {"model", replica.description.model},
          {"model_digest", replica.description.model_digest},
          {"text_digest", replica.description.text_digest},
          {"device", replica.description.device},
          {"drafter", replica.description.drafter},
          {"speculated_tokens", replica.load.speculated_tokens},
          {"accepted_speculated_tokens", replica.load.accepted_speculated_tokens},
          {"rank_bytes", replica.description.rank_bytes},
          {"tensor_parallel", replica.description.tensor_parallel},
          {"pipeline_parallel", replica.description.pipeline_parallel},
          {"running", replica.load.running_sequences},
          {"waiting", replica.load.waiting_sequences},
          {"free_blocks", replica.load.free_blocks},
          {"cached_blocks", replica.load.cached_blocks},
          {"total_blocks", replica.load.total_blocks},
          {"last_error", replica.last_error},
          {"refusal", replica.refusal}};
}

void SetRefused(MetricRegistry& metrics, const std::string& tier, const std::vector<ReplicaView>& replicas) {
  for (const std::string_view reason : kManifestReasons) {
    metrics.GetGauge("terrace_pool_refused_workers", Labels{tier, std::string(reason)})
        .Set(static_cast<double>(std::ranges::count(replicas, reason, &ReplicaView::refusal)));
  }
}

}  // namespace

void OpsHandler::Handle(const HttpRequest& request, HttpResponder& responder) {
  if (request.path == "/drain") return Drain(request, responder);
  if (request.method != "GET" && request.method != "HEAD") {
    return responder.Send(405, "use GET\n", "text/plain", {{"allow", "GET, HEAD"}});
  }
  if (request.path == "/healthz") return responder.Send(200, "ok\n", "text/plain");
  if (request.path == "/metrics") return responder.Send(200, Metrics(), MetricRegistry::kContentType);
  if (request.path == "/statusz") return responder.Send(200, ToJsonText(StatusPage()) + "\n");
  if (request.path == "/readyz") {
    const Json readiness = Readiness();
    return responder.Send(readiness["ready"] == true ? 200 : 503, ToJsonText(readiness) + "\n");
  }
  responder.Send(404, "there are /metrics /healthz /readyz /statusz, and POST /drain\n", "text/plain");
}

// Nobody is asked for a key here, so who can reach the listener from elsewhere can only look.
void OpsHandler::Drain(const HttpRequest& request, HttpResponder& responder) {
  if (request.method != "POST") return responder.Send(405, "use POST\n", "text/plain", {{"allow", "POST"}});
  const auto peer = ParseHostPort(request.peer);
  if (!peer.ok() || !peer->is_loopback()) {
    return responder.Send(403, "only for processes of the router's own machine\n", "text/plain");
  }
  drain_();
  responder.Send(200, ToJsonText({{"draining", true}, {"in_flight", cores_.in_flight()}}) + "\n");
}

// Gauges are read from the latest view, so that they never disagree with one another.
std::string OpsHandler::Metrics() {
  MetricRegistry& metrics = metrics_;
  const auto core = cores_.Current();
  const auto view = core->View();
  metrics.GetGauge("terrace_requests_in_flight").Set(static_cast<double>(cores_.in_flight()));
  std::lock_guard lock(mutex_);
  for (auto& [replica, is_seen] : replicas_) is_seen = false;
  for (const std::string& tier : tiers_) {  // a reload may have removed some
    metrics.GetGauge("terrace_pool_ready_workers", Labels{tier}).Set(0);
    metrics.GetGauge("terrace_requests_queued", Labels{tier}).Set(0);
    metrics.GetGauge("terrace_pool_saturation_ratio", Labels{tier}).Set(0);
    metrics.GetGauge("terrace_pool_token_seconds", Labels{tier}).Set(0);
    SetRefused(metrics, tier, {});
  }
  for (size_t i = 0; i < view->tiers.size(); ++i) {
    const TierView& tier = view->tiers[i];
    tiers_.insert(tier.name);
    metrics.GetGauge("terrace_requests_queued", Labels{tier.name})
        .Set(static_cast<double>(core->admission().queued(i)));
    metrics.GetGauge("terrace_pool_saturation_ratio", Labels{tier.name}).Set(core->admission().saturation(i));
    metrics.GetGauge("terrace_pool_token_seconds", Labels{tier.name})
        .Set(core->admission().seconds_per_token(i).value_or(0));
    metrics.GetGauge("terrace_pool_ready_workers", Labels{tier.name})
        .Set(static_cast<double>(tier.ready_replicas()));
    SetRefused(metrics, tier.name, tier.replicas);
    for (const ReplicaView& replica : tier.replicas) {
      replicas_[{tier.name, replica.address}] = true;
      for (const ReplicaState state : kReplicaStates) {
        metrics.GetGauge("terrace_worker_state", Labels{tier.name, replica.address, ReplicaStateName(state)})
            .Set(replica.state == state ? 1 : 0);
      }
      metrics.GetGauge("terrace_prefix_index_keys", Labels{tier.name, replica.address})
          .Set(replica.state == ReplicaState::kReady
                   ? static_cast<double>(tier.prefixes->keys_of(replica.prefix_slot))
                   : 0);
    }
  }
  for (const auto& [replica, is_seen] : replicas_) {
    if (is_seen) continue;  // else it has left the tier
    for (const ReplicaState state : kReplicaStates) {
      metrics.GetGauge("terrace_worker_state", Labels{replica.first, replica.second, ReplicaStateName(state)})
          .Set(0);
    }
    metrics.GetGauge("terrace_prefix_index_keys", Labels{replica.first, replica.second}).Set(0);
  }
  return metrics.Render();
}

Json OpsHandler::Readiness() const {
  const auto view = cores_.Current()->View();
  Json not_ready = Json::array(), refused = Json::object();
  for (const TierView& tier : view->tiers) {
    if (tier.ready_replicas() > 0) continue;
    not_ready.push_back(tier.name);
    if (tier.is_refused()) refused[tier.name] = tier.replicas.front().refusal;
  }
  const bool is_ready = !is_draining_ && not_ready.size() < view->tiers.size();
  return {{"ready", is_ready},
          {"draining", is_draining_.load()},
          {"tiers_not_ready", std::move(not_ready)},
          {"tiers_refused", std::move(refused)}};
}

Json OpsHandler::StatusPage() const {
  const auto core = cores_.Current();
  const auto view = core->View();
  Json tiers = Json::array();
  for (size_t i = 0; i < view->tiers.size(); ++i) {
    const TierView& tier = view->tiers[i];
    const TierPrice& price = core->catalog().tiers()[i].price;
    Json replicas = Json::array();
    for (const ReplicaView& replica : tier.replicas) replicas.push_back(ReplicaJson(replica));
    tiers.push_back({{"name", tier.name},
                     {"model", tier.model},
                     {"context_length", tier.context_length},
                     {"parameters", tier.parameters},
                     {"usd_per_million_prompt_tokens", price.usd_per_million_prompt_tokens},
                     {"usd_per_million_completion_tokens", price.usd_per_million_completion_tokens},
                     {"ready_replicas", tier.ready_replicas()},
                     {"queued", core->admission().queued(i)},
                     {"replicas", std::move(replicas)}});
  }
  Json models = Json::array();
  for (const ModelInfo& model : core->dispatcher().ListModels(*DefaultTenant())) {
    models.push_back({{"id", model.id},
                      {"is_policy", model.is_policy},
                      {"tiers", model.tiers},
                      {"ready", model.is_ready}});
  }
  return {{"version", kVersion},
          {"uptime_seconds", Seconds(clock_.Now() - started_)},
          {"models", std::move(models)},
          {"tiers", std::move(tiers)},
          {"in_flight", cores_.in_flight()}};
}

}  // namespace terrace
