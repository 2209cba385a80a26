#include "router/server/core.h"

#include <algorithm>
#include <random>
#include <utility>

#include "base/grpc_tls.h"
#include "base/log.h"

namespace terrace {
namespace {

constexpr uint32_t kUnknownSequences = 16;  // of a replica that does not say how many it batches

Duration FromSeconds(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

using Gates = std::vector<std::shared_ptr<const ManifestGate>>;

std::shared_ptr<Cluster> MakeCluster(const RouterOptions& options, const Gates& gates,
                                     MetricRegistry& metrics, const TlsSource* tls,
                                     std::function<void()> on_change, const Discoveries& known) {
  const Duration dns_refresh = FromSeconds(options.dns_refresh_seconds);
  ClusterOptions out{
      .connect_backoff = FromSeconds(options.connect_backoff_seconds),
      .watch_timeout = FromSeconds(options.watch_timeout_seconds),
      .discovery_period = std::min<Duration>(std::chrono::seconds(1), dns_refresh),
      .dns_refresh = dns_refresh,
      .ejection = options.ejection,
      .slow_start = FromSeconds(options.slow_start_seconds),
      .channels = {tls == nullptr ? nullptr : MakeChannelCredentials(tls), options.worker_server_name},
      .token_cache_bytes = options.token_cache_bytes,
      .seed = RandomSeed(),
      .on_change = [on_change = std::move(on_change)](const ClusterView&) { on_change(); }};
  for (size_t i = 0; i < options.tiers.size(); ++i) {
    auto discoveries = MakeDiscoveries(options.workers[i], {}, known);
    CHECK(discoveries.ok(), "options check workers: ", Message(discoveries.status()));
    out.tiers.push_back({options.tiers[i].name, *std::move(discoveries), gates[i]});
  }
  return std::make_shared<Cluster>(std::move(out), metrics);
}

// Whether both would make the same cluster, whatever its manifests.
bool HaveSameCluster(const RouterOptions& a, const RouterOptions& b) {
  const auto is_same_name = [](const CatalogTier& x, const CatalogTier& y) { return x.name == y.name; };
  return std::ranges::equal(a.tiers, b.tiers, is_same_name) && a.workers == b.workers &&
         a.connect_backoff_seconds == b.connect_backoff_seconds &&
         a.watch_timeout_seconds == b.watch_timeout_seconds &&
         a.dns_refresh_seconds == b.dns_refresh_seconds && a.ejection == b.ejection &&
         a.slow_start_seconds == b.slow_start_seconds && a.worker_server_name == b.worker_server_name &&
         a.token_cache_bytes == b.token_cache_bytes;
}

// A worker whose batch is full has a quarter as many waiting, so that no step of it runs half empty.
uint32_t PlacesOf(const TierView& tier) {
  uint32_t places = 0;
  for (const ReadyReplica& ready : tier.ready) {
    const uint32_t said = tier.replicas[ready.index].description.max_sequences;
    const uint32_t sequences = said == 0 ? kUnknownSequences : said;
    places += sequences + (sequences + 3) / 4;
  }
  return places;
}

// Who has been reached is kept out by manifests, and nobody else is about to be.
bool IsKeptOut(const TierView& tier) {
  const auto is_refused = [](const ReplicaView& replica) { return replica.state == ReplicaState::kRefused; };
  const auto is_settled = [&](const ReplicaView& replica) {
    return is_refused(replica) || !replica.last_error.empty();
  };
  return std::ranges::any_of(tier.replicas, is_refused) && std::ranges::all_of(tier.replicas, is_settled);
}

}  // namespace

StatusOr<std::shared_ptr<Core>> Core::Make(const RouterOptions& options, MetricRegistry& metrics,
                                           Lasting lasting, const Core* previous) {
  const std::shared_ptr<Core> core(new Core(options, metrics, lasting));
  ASSIGN_OR_RETURN(core->catalog_,
                   ModelCatalog::Make(options.tiers, options.policies, options.default_model));
  if (!options.keys_file.empty()) {
    ASSIGN_OR_RETURN(core->tenants_,
                     Tenants::Load(options.keys_file, options.cluster_secret_file, *core->catalog_));
  }
  ASSIGN_OR_RETURN(core->gates_, LoadGates(options));
  core->balancer_ = MakeBalancer(options.balance);
  core->admission_ = std::make_unique<Admission>(
      AdmissionOptions{.max_in_flight = options.max_in_flight,
                       .max_queued = options.max_queued,
                       .max_first_token = FromSeconds(options.max_first_token_seconds)},
      TierNames(options), lasting.book);
  core->cluster_ = previous != nullptr && HaveSameCluster(previous->options_, options)
                       ? previous->cluster_
                       : MakeCluster(options, core->gates_, metrics, lasting.worker_tls.get(),
                                     std::move(lasting.on_change),
                                     previous == nullptr ? Discoveries() : previous->cluster_->discoveries());
  core->dispatcher_ =
      MakeDispatcher({*core->cluster_, *core->catalog_, *core->balancer_, *core->admission_, core->recorder_,
                      RealClock(), RandomSeed(), options.retries, std::move(lasting.quarantine)});
  core->Housekeep();
  return core;
}

std::vector<std::string> Core::TierNames(const RouterOptions& options) {
  std::vector<std::string> out;
  for (const CatalogTier& tier : options.tiers) out.push_back(tier.name);
  return out;
}

std::shared_ptr<const ApiOptions> Core::MakeApiOptions(std::function<bool()> is_ready,
                                                       decltype(ApiOptions::run_aside) run_aside,
                                                       int64_t started_unix_seconds, uint64_t seed) const {
  return std::make_shared<const ApiOptions>(
      ApiOptions{.default_timeout_seconds = options_.default_timeout_seconds,
                 .max_timeout_seconds = options_.max_timeout_seconds,
                 .default_model = (*catalog_->Find(""))->id,
                 .created_unix_seconds = started_unix_seconds,
                 .seed = seed,
                 .stream_buffer_bytes = options_.http_limits.stream_buffer_bytes,
                 .slow_reader_seconds = options_.http_limits.slow_reader_seconds,
                 .authenticator = tenants_,
                 .rate_limits = [&ledger = ledger_](const Tenant& tenant) { return ledger.LimitsOf(tenant); },
                 .is_ready = std::move(is_ready),
                 .run_aside = std::move(run_aside)});
}

Status Core::ReloadManifests() {
  ASSIGN_OR_RETURN(gates_, LoadGates(options_));
  cluster_->SetGates(gates_);
  return {};
}

bool Core::HasUnreadableManifest() const {
  return std::ranges::any_of(gates_,
                             [](const auto& gate) { return gate != nullptr && gate->HasUnreadable(); });
}

void Core::TakeCharge() {
  admission_->TakeCharge();
  cluster_->SetGates(gates_);
  Housekeep();
}

void Core::Housekeep() {
  const auto view = cluster_->View();
  std::vector<uint32_t> places;
  for (const TierView& tier : view->tiers) places.push_back(PlacesOf(tier));
  admission_->SetPlaces(places);
  admission_->Expire();
  dispatcher_->Housekeep();
  CheckPolicies(*view);
}

Core::~Core() {
  if (catalog_ == nullptr) return;
  dispatcher_ = nullptr;
  for (const CatalogEntry& entry : catalog_->entries()) {  // the current core sets those that it has again
    const std::vector<std::string> labels = {entry.id};
    if (entry.is_policy) metrics_.GetGauge("terrace_policy_calibration_stale", labels).Set(0);
    if (entry.shadow.has_value()) metrics_.GetGauge("terrace_policy_drifted", labels).Set(0);
  }
}

void Core::CheckPolicies(const ClusterView& view) {
  for (const CatalogEntry& entry : catalog_->entries()) {
    if (!entry.is_policy) continue;
    const Status now = entry.policy->Check(view);
    const bool is_stale = Reason(now) == "stale_calibration";
    metrics_.GetGauge("terrace_policy_calibration_stale", std::vector<std::string>{entry.id})
        .Set(is_stale ? 1 : 0);
    std::lock_guard lock(stale_mutex_);
    if (is_stale && stale_.insert(entry.id).second) {
      Log(LogLevel::kError, "calibration_stale", {{"policy", entry.id}, {"error", Message(now)}});
    }
    if (!is_stale && stale_.erase(entry.id) > 0)
      Log(LogLevel::kInfo, "calibration_fits", {{"policy", entry.id}});
  }
}

StatusOr<std::vector<std::shared_ptr<const ManifestGate>>> LoadGates(const RouterOptions& options) {
  Gates gates(options.tiers.size());
  for (size_t i = 0; i < std::min(gates.size(), options.manifests.size()); ++i) {
    if (!options.manifests[i].has_value()) continue;
    auto gate = ManifestGate::Load(*options.manifests[i]);
    if (!gate.ok()) return Annotate(gate.status(), Concat("tiers[", i, "].manifest_keys"));
    gates[i] = *std::move(gate);
  }
  return gates;
}

uint64_t RandomSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

Status CheckAsReady(const ClusterView& before, const ClusterView& after) {
  for (const TierView& tier : before.tiers) {
    const auto found = std::ranges::find(after.tiers, tier.name, &TierView::name);
    const bool may_be_empty = tier.ready_replicas() == 0 || found == after.tiers.end() || IsKeptOut(*found);
    if (may_be_empty || found->ready_replicas() > 0) continue;
    const auto told = std::ranges::find_if(
        found->replicas, [](const ReplicaView& replica) { return !replica.last_error.empty(); });
    return Unavailable("tier ", tier.name, " has ready workers now, and would have none: ",
                       found->replicas.empty()         ? "none is found"
                       : told == found->replicas.end() ? found->replicas.front().address + " is not ready yet"
                                                       : Concat(told->address, ": ", told->last_error));
  }
  return {};
}

bool IsReady(const ClusterView& view) {
  return std::ranges::any_of(view.tiers, [](const TierView& tier) { return tier.ready_replicas() > 0; });
}

}  // namespace terrace
