#include "router/cluster/cluster.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <optional>
#include <set>
#include <utility>

#include "base/log.h"
#include "base/rng.h"

namespace terrace {
namespace {

std::atomic<ReplicaId> next_replica_id = 0;  // of all clusters: a reload may make another beside this one

constexpr int kMaxBackoffDoublings = 4;
constexpr auto kPublishDelay = std::chrono::milliseconds(10);
constexpr auto kLongestLook = std::chrono::minutes(1);  // of a Discovery that nobody worries about
constexpr size_t kMostUpdates = 256;  // of one Watch that are not looked at yet: a minute of them

StatusOr<std::shared_ptr<const TextAssets>> CheckText(const std::string& bytes, const std::string& digest,
                                                      std::shared_ptr<TokenCache> token_cache) {
  ASSIGN_OR_RETURN(TextAssets text, ParseTextAssets(bytes));
  const std::string got = Digest(text).Hex();
  if (got != digest) return DataLoss("text assets: digest ", got, ", the worker announced ", digest);
  text.token_cache = std::move(token_cache);
  return std::make_shared<const TextAssets>(std::move(text));
}

// What came on one Watch stream and was not looked at yet: put by gRPC's thread, taken by the cluster's. Of
// the load only the newest counts; deltas of prefixes all do, and a worker sends four a second. Of one
// stream, so what a closed one leaves behind stands in no other's way.
class PendingUpdates {
 public:
  // True when earlier ones have not been taken yet. Too many are all dropped but for the last: its digest
  // will not be that of what is known.
  bool Put(WatchUpdate update) {
    std::lock_guard lock(mutex_);
    const bool is_first = updates_.empty();
    if (update.prefixes.is_snapshot || updates_.size() >= kMostUpdates) updates_.clear();
    updates_.push_back(std::move(update));
    return !is_first;
  }
  std::vector<WatchUpdate> Take() {
    std::lock_guard lock(mutex_);
    return std::exchange(updates_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<WatchUpdate> updates_;  // GUARDED_BY(mutex_)
};

std::vector<std::string> TierNames(const ClusterOptions& options) {
  std::vector<std::string> out;
  for (const auto& tier : options.tiers) out.push_back(tier.name);
  return out;
}

// Those that were not there the last time, and the end of all.
void LogErrors(const std::string& tier, const std::vector<Status>& before, const std::vector<Status>& now) {
  for (const Status& error : now) {
    if (std::ranges::find(before, error) != before.end()) continue;
    Log(LogLevel::kWarn, "discovery_failed", {{"tier", tier}, {"error", Message(error)}});
  }
  if (now.empty() && !before.empty()) Log(LogLevel::kInfo, "discovery_recovered", {{"tier", tier}});
}

// Tells of the calls that failed by a replica's fault, and of the first that succeeds afterwards: most calls
// cost a count and a look at a flag. Thread-safe; of calls that end at the same time the order is anyone's.
class CallReports : public CallObserver {
 public:
  // Gets the fault, "" for a success, and of a fault the successes since the one before. Must not block.
  using Report = std::function<void(std::string_view fault, uint64_t successes)>;
  explicit CallReports(Report report) : report_(std::move(report)) {}

  void OnCallEnd(const Status& status) override {
    if (const std::string_view fault = FaultOf(status); !fault.empty()) {
      waits_for_success_ = true;
      report_(fault, successes_.exchange(0));
    } else if (status.ok()) {
      successes_.fetch_add(1, std::memory_order_relaxed);
      if (waits_for_success_ && waits_for_success_.exchange(false)) report_("", 0);
    }
  }
  void WaitForSuccess() { waits_for_success_ = true; }

 private:
  const Report report_;
  std::atomic<uint64_t> successes_ = 0;  // since the last fault
  std::atomic<bool> waits_for_success_ = false;
};

constexpr size_t kMostLogged = 20;  // addresses of a list

Json FirstOf(const std::vector<std::string>& addresses) {
  const auto end = addresses.begin() + static_cast<ptrdiff_t>(std::min(addresses.size(), kMostLogged));
  return std::vector<std::string>(addresses.begin(), end);
}

}  // namespace

struct Cluster::Replica {
  ReplicaId id = 0;
  size_t tier = 0;
  std::string address;
  std::shared_ptr<WorkerConnection> connection;
  std::shared_ptr<CallReports> reports;
  bool is_removed = false;
  bool is_leaving = false;  // as ReplicaView has it

  // As its Watch has it: an ejected one is ready here.
  ReplicaState state = ReplicaState::kConnecting;
  ReplicaDescription description;
  Status admission;                        // what the tier's gate says of `description`
  std::shared_ptr<const TextAssets> text;  // of `description`
  ReplicaLoad load;
  OthersLoad others;  // of `load`, when it came
  std::string last_error;
  MonoTime last_update;
  MonoTime in_use_since;  // when it took requests for the first time, or again
  int failures = 0;       // in a row
  uint64_t attempt = 0;   // counts connections; callbacks of an earlier one are ignored
  PrefixIndex::Slot prefix_slot = 0;
  bool is_synchronised = false;            // this Watch has brought something sound
  std::optional<MonoTime> resynchronised;  // the last time
  const std::shared_ptr<ReplicaInFlight> in_flight = std::make_shared<ReplicaInFlight>();
  std::unique_ptr<CallHandle> call;  // the one Describe, FetchText or Watch in progress
};

struct Cluster::Tier {
  std::string name = {};
  std::map<std::string, Discovered> found = {};  // by entry, of those that have looked
  std::map<std::string, MonoTime> looked = {};   // by entry, the last time
  std::vector<ReplicaPtr> replicas = {};
  ReplicaDescription served = {};  // what the ready replicas share
  MonoTime last_ready = {};        // some replica was
  std::shared_ptr<const TextAssets> text = {};
  std::shared_ptr<PrefixIndex> prefixes = std::make_shared<PrefixIndex>();
  std::shared_ptr<const ManifestGate> gate = {};  // null: any model
  Ejections ejections;

  // What each Discovery has found last, one after the other, each once.
  std::vector<std::string> Addresses() const {
    std::vector<std::string> all;
    std::set<std::string_view> known;
    for (const auto& [entry, latest] : found) {
      std::ranges::copy_if(latest.addresses, std::back_inserter(all),
                           [&](const std::string& address) { return known.insert(address).second; });
    }
    return all;
  }
  std::vector<Status> DiscoveryErrors() const {
    std::vector<Status> all;
    for (const auto& [entry, latest] : found)
      all.insert(all.end(), latest.errors.begin(), latest.errors.end());
    return all;
  }
  bool IsInUse(const Replica& replica) const {
    return replica.state == ReplicaState::kReady && !ejections.IsEjected(replica.id);
  }
  size_t in_use() const {
    return static_cast<size_t>(
        std::ranges::count_if(replicas, [this](const ReplicaPtr& replica) { return IsInUse(*replica); }));
  }
};

Cluster::Cluster(ClusterOptions options, MetricRegistry& metrics)
    : options_(std::move(options)),
      token_cache_(options_.token_cache_bytes == 0
                       ? nullptr
                       : std::make_shared<TokenCache>(options_.token_cache_bytes)),
      metrics_(metrics, TierNames(options_)),
      loop_(std::make_shared<EventLoop>()) {
  for (const auto& tier : options_.tiers) {
    tiers_.push_back(std::make_unique<Tier>(
        Tier{.name = tier.name, .gate = tier.gate, .ejections = Ejections(options_.ejection)}));
  }
  {  // A view exists from the start: all tiers, no replica yet.
    auto view = std::make_shared<ClusterView>();
    for (const auto& tier : options_.tiers) view->tiers.push_back({.name = tier.name});
    view_ = std::move(view);
  }
  Post([this] { CheckSilence(RealClock().Now()); });
  for (size_t i = 0; i < options_.tiers.size(); ++i) {
    for (const auto& each : options_.tiers[i].discoveries) {
      const auto latest = each.second->latest();
      if (latest.has_value())
        Post([this, i, entry = each.first, latest] { OnDiscovered(i, entry, *latest, /*failures=*/0); });
      discoverers_.emplace_back(
          [this, i, entry = each.first](const std::stop_token& stop) { DiscoverForever(stop, i, entry); });
    }
  }
}

Cluster::~Cluster() {
  for (std::jthread& discoverer : discoverers_) discoverer.request_stop();
  loop_->Stop();
  for (const auto& tier : tiers_) {
    for (const ReplicaPtr& replica : tier->replicas) {
      if (replica->call != nullptr) replica->call->Cancel();
    }
  }
  discoverers_.clear();  // joins; last, as a name server may take long, and nobody is to be watched meanwhile
}

std::shared_ptr<const ClusterView> Cluster::View() const {
  std::lock_guard lock(view_mutex_);
  return view_;
}

Discoveries Cluster::discoveries() const {
  Discoveries all;
  for (const auto& tier : options_.tiers) all.insert(tier.discoveries.begin(), tier.discoveries.end());
  return all;
}

void Cluster::DiscoverForever(const std::stop_token& stop, size_t tier, const std::string& entry) {
  Discovery& discovery = *options_.tiers[tier].discoveries.at(entry);
  const Duration period = PeriodOf(discovery);
  std::mutex mutex;
  std::condition_variable_any stopped;
  while (!stop.stop_requested()) {
    Post([this, tier, entry, found = discovery.Resolve()] {
      OnDiscovered(tier, entry, found, found.errors.size());
    });
    std::unique_lock lock(mutex);
    stopped.wait_for(lock, stop, period, [] { return false; });
  }
}

Duration Cluster::PeriodOf(const Discovery& discovery) const {
  return discovery.asks_names() ? options_.dns_refresh : options_.discovery_period;
}

// One whose look never ends, as at a file of a file server that is gone, is not up to date for ever.
bool Cluster::HaveAllLooked(size_t tier) const {
  const std::map<std::string, MonoTime>& looked = tiers_[tier]->looked;
  const MonoTime now = RealClock().Now();
  return std::ranges::all_of(options_.tiers[tier].discoveries, [&](const auto& each) {
    const auto found = looked.find(each.first);
    return found != looked.end() && now - found->second <= PeriodOf(*each.second) + kLongestLook;
  });
}

// What a Discovery has not told yet takes nobody away: it adds to what the others found.
void Cluster::OnDiscovered(size_t tier_index, const std::string& entry, const Discovered& found,
                           size_t failures) {
  Tier& tier = *tiers_[tier_index];
  const std::vector<Status> errors_before = tier.DiscoveryErrors();
  Discovered& latest = tier.found[entry];
  const bool is_same = found.addresses == latest.addresses;
  latest = found;
  const std::vector<Status> errors = tier.DiscoveryErrors();
  tier.looked[entry] = RealClock().Now();
  metrics_.OnDiscovery(tier_index, failures, errors.empty() && HaveAllLooked(tier_index));
  LogErrors(tier.name, errors_before, errors);
  if (!is_same) SetAddresses(tier_index, tier.Addresses());
}

void Cluster::SetAddresses(size_t tier_index, const std::vector<std::string>& addresses) {
  Tier& tier = *tiers_[tier_index];
  std::vector<PrefixIndex::Slot> removed;
  std::vector<std::string> came, went;
  std::erase_if(tier.replicas, [&](const ReplicaPtr& replica) {
    if (std::find(addresses.begin(), addresses.end(), replica->address) != addresses.end()) return false;
    went.push_back(replica->address);
    replica->is_removed = true;
    if (replica->call != nullptr) replica->call->Cancel();
    tier.ejections.Forget(replica->id);
    removed.push_back(replica->prefix_slot);
    return true;
  });
  std::vector<ReplicaPtr> added;
  for (const std::string& address : addresses) {
    const auto is_known = [&](const ReplicaPtr& replica) { return replica->address == address; };
    if (std::any_of(tier.replicas.begin(), tier.replicas.end(), is_known)) continue;
    if (tier.replicas.size() + removed.size() >= PrefixIndex::kMaxSlots) {
      Log(LogLevel::kError, "too_many_replicas",
          {{"tier", tier.name}, {"limit", PrefixIndex::kMaxSlots}, {"unused", address}});
      break;
    }
    added.push_back(tier.replicas.emplace_back(MakeReplica(tier_index, address)));
    came.push_back(address);
  }
  if (!removed.empty() || !added.empty()) {
    Log(LogLevel::kInfo, "replicas_changed",
        {{"tier", tier.name},
         {"came", came.size()},
         {"went", went.size()},
         {"first_came", FirstOf(came)},
         {"first_went", FirstOf(went)},
         {"now", tier.replicas.size()}});
    Publish();
  }
  tier.prefixes->Remove(removed);
  for (const ReplicaPtr& replica : added) Connect(replica);
}

Cluster::ReplicaPtr Cluster::MakeReplica(size_t tier, const std::string& address) {
  auto replica = std::make_shared<Replica>();
  replica->id = next_replica_id++;
  replica->tier = tier;
  replica->address = address;
  replica->connection = WorkerConnection::Make(address, options_.channels);
  replica->reports =
      std::make_shared<CallReports>([this, loop = loop_, weak = std::weak_ptr<Replica>(replica)](
                                        std::string_view fault, uint64_t successes) {
        loop->Post([this, weak, fault, successes] {
          if (const ReplicaPtr found = weak.lock(); found != nullptr) OnCallEnd(found, fault, successes);
        });
      });
  replica->prefix_slot = tiers_[tier]->prefixes->Add();
  return replica;
}

// The callbacks below hold the loop, not this object: Post drops them once the loop has stopped, and the loop
// stops before this object goes.
void Cluster::Connect(const ReplicaPtr& replica) {
  if (replica->is_removed) return;
  const uint64_t attempt = ++replica->attempt;
  replica->call = replica->connection->Describe(
      options_.call_timeout,
      [this, loop = loop_, replica, attempt](StatusOr<ReplicaDescription> description) {
        loop->Post([this, replica, attempt, description = std::move(description)] {
          if (replica->attempt == attempt && !replica->is_removed) OnDescribed(replica, description);
        });
      });
}

void Cluster::OnDescribed(const ReplicaPtr& replica, StatusOr<ReplicaDescription> description) {
  if (!description.ok()) return Fail(replica, description.status());
  if (description->instance.empty()) return Fail(replica, DataLoss("the worker tells no instance"));
  // Another process at that address has not failed yet.
  if (description->instance != replica->description.instance) {
    tiers_[replica->tier]->ejections.Forget(replica->id);
  }
  replica->description = *std::move(description);
  AskGate(replica);
  NeedText(replica);
}

void Cluster::SetGates(std::vector<std::shared_ptr<const ManifestGate>> gates) {
  Post([this, gates = std::move(gates)] {
    for (size_t i = 0; i < tiers_.size() && i < gates.size(); ++i) {
      tiers_[i]->gate = gates[i];
      for (const ReplicaPtr& replica : tiers_[i]->replicas) {
        if (replica->description.instance.empty()) continue;  // not reached yet
        AskGate(replica);
        if (replica->admission.ok() || replica->state != ReplicaState::kReady) continue;
        replica->last_error = Message(replica->admission);
        SetState(replica, ReplicaState::kRefused);
      }
    }
    Publish();  // who is let in is ready with its next update
  });
}

void Cluster::AskGate(const ReplicaPtr& replica) {
  const Tier& tier = *tiers_[replica->tier];
  const ReplicaDescription& has = replica->description;
  Status verdict;
  if (tier.gate != nullptr) {
    verdict = tier.gate->Check(has.model_digest, has.text_digest,
                               {.compute = has.compute, .kv_dtype = has.kv_dtype});
  }
  if (verdict != replica->admission && verdict.ok()) {
    Log(LogLevel::kInfo, "model_let_in",
        {{"tier", tier.name}, {"replica", replica->address}, {"model", has.model}});
  } else if (verdict != replica->admission) {
    Log(LogLevel::kError, "model_refused",
        {{"tier", tier.name},
         {"replica", replica->address},
         {"model", has.model},
         {"model_digest", has.model_digest},
         {"reason", Reason(verdict)},
         {"error", Message(verdict)}});
  }
  replica->admission = std::move(verdict);
}

void Cluster::NeedText(const ReplicaPtr& replica) {
  std::erase_if(texts_, [](const auto& entry) {
    return entry.second.text.expired() && entry.second.fetching.expired() && entry.second.waiting.empty();
  });
  const std::string digest = replica->description.text_digest;
  TextEntry& entry = texts_[digest];
  replica->text = entry.text.lock();
  if (replica->text != nullptr) return StartWatch(replica);
  if (const auto other = entry.fetching.lock(); other != nullptr && other != replica && !other->is_removed) {
    entry.waiting.push_back(replica);
    return;
  }
  entry.fetching = replica;
  replica->call = replica->connection->FetchText(
      digest, 6 * options_.call_timeout,
      [this, loop = loop_, replica, digest, attempt = replica->attempt](StatusOr<std::string> bytes) {
        loop->Post([this, replica, digest, attempt, bytes = std::move(bytes)] {
          if (replica->attempt == attempt) OnText(replica, digest, bytes);
        });
      });
}

void Cluster::OnText(const ReplicaPtr& replica, const std::string& digest, StatusOr<std::string> bytes) {
  TextEntry& entry = texts_[digest];
  entry.fetching.reset();
  const auto text = bytes.ok() ? CheckText(*bytes, digest, token_cache_) : bytes.status();
  if (text.ok()) replica->text = *text;
  entry.text = replica->text;
  // Those who waited go on, or try themselves, one after the other.
  for (const auto& waiting : std::exchange(entry.waiting, {})) {
    if (const ReplicaPtr other = waiting.lock(); other != nullptr && !other->is_removed) NeedText(other);
  }
  if (replica->is_removed) return;
  if (!text.ok()) return Fail(replica, text.status());
  StartWatch(replica);
}

void Cluster::StartWatch(const ReplicaPtr& replica) {
  const uint64_t attempt = replica->attempt;
  replica->last_update = RealClock().Now();
  replica->is_synchronised = false;
  const auto pending = std::make_shared<PendingUpdates>();
  replica->call = replica->connection->Watch(
      [this, loop = loop_, replica, attempt, pending](WatchUpdate update) {
        if (pending->Put(std::move(update))) return;  // a look is on its way already
        loop->Post([this, replica, attempt, pending] {
          for (const WatchUpdate& each : pending->Take()) {
            if (replica->attempt == attempt && !replica->is_removed) OnUpdate(replica, each);
          }
        });
      },
      [this, loop = loop_, replica, attempt](const Status& status) {
        loop->Post([this, replica, attempt, status] {
          if (replica->attempt != attempt || replica->is_removed) return;
          if (status.code() == StatusCode::kAborted) return Resynchronise(replica, status);
          Fail(replica, status.ok() ? Unavailable("the worker ended its watch stream") : status);
        });
      });
}

// At once, but not for ever: a Watch that brings nothing sound is a failure like others.
void Cluster::Resynchronise(const ReplicaPtr& replica, const Status& error) {
  const MonoTime now = RealClock().Now();
  const auto last = std::exchange(replica->resynchronised, now);
  const bool is_soon =
      last.has_value() && now - *last < options_.connect_backoff * (1 << kMaxBackoffDoublings);
  if (!replica->is_synchronised || is_soon) return Fail(replica, error);
  metrics_.OnResync(replica->tier);
  Log(LogLevel::kWarn, "replica_resynchronised",
      {{"tier", tiers_[replica->tier]->name}, {"replica", replica->address}, {"error", Message(error)}});
  ++replica->attempt;
  replica->call->Cancel();
  tiers_[replica->tier]->prefixes->Clear(replica->prefix_slot);
  StartWatch(replica);
}

void Cluster::OnUpdate(const ReplicaPtr& replica, const WatchUpdate& update) {
  replica->last_update = update.arrived;
  replica->load = update.load;
  replica->others = LoadOfOthers(update.load, *replica->in_flight);
  Tier& tier = *tiers_[replica->tier];
  const bool is_refused = !replica->admission.ok();  // then it need not fit
  if (const Status fits = is_refused ? Status() : CheckFits(tier, *replica); !fits.ok())
    return Fail(replica, fits);
  // What is left of an earlier Watch does not count.
  if (!replica->is_synchronised && !update.prefixes.is_snapshot) tier.prefixes->Clear(replica->prefix_slot);
  if (!tier.prefixes->Apply(replica->prefix_slot, update.prefixes)) {
    return Resynchronise(replica, Aborted("watch: the prefixes' digest is not ", update.prefixes.digest));
  }
  replica->is_synchronised = true;
  replica->failures = 0;
  if (update.state == ReplicaState::kStalled) {
    replica->last_error = "its engine makes no steps, though it has work";
  } else if (is_refused) {
    replica->last_error = Message(replica->admission);
  } else if (!tier.ejections.IsEjected(replica->id)) {
    replica->last_error.clear();
  }
  const ReplicaState state =
      is_refused && update.state == ReplicaState::kReady ? ReplicaState::kRefused : update.state;
  if (state == ReplicaState::kReady) {
    tier.served = replica->description;
    tier.last_ready = update.arrived;
    tier.text = replica->text;
  }
  if (state == replica->state) return PublishSoon();
  SetState(replica, state);
  Publish();
  if (IsHung(state)) EndCallsOfHung(*replica);
}

// A process that is found at two addresses is one replica, the first that was ready. While any replica of
// the tier is ready, the others must serve the same. A tier with none takes another
// version of its model at once, but a model of another name only after model_kept: the address may have
// become another tier's. A gate that let the model in knows better.
Status Cluster::CheckFits(const Tier& tier, const Replica& replica) const {
  const ReplicaDescription& has = replica.description;
  for (const ReplicaPtr& other : tier.replicas) {
    const bool is_in_use = other->state == ReplicaState::kReady || other->state == ReplicaState::kDraining;
    if (other->id == replica.id || !is_in_use) continue;
    if (other->description.instance == has.instance)
      return WithReason(FailedPrecondition("is the process at ", other->address, " too"), kMismatchReason);
  }
  const auto is_other = [&](const ReplicaPtr& other) {
    return other->id != replica.id && other->state == ReplicaState::kReady;
  };
  const bool is_same =
      has.model_digest == tier.served.model_digest && has.text_digest == tier.served.text_digest;
  const bool is_served = !tier.served.model_digest.empty();
  const bool fits = std::ranges::any_of(tier.replicas, is_other)
                        ? is_same
                        : !is_served || tier.gate != nullptr || has.model == tier.served.model ||
                              replica.last_update - tier.last_ready >= options_.model_kept;
  if (fits) return {};
  return WithReason(
      FailedPrecondition("serves model ", has.model, " (", has.model_digest, "), the tier serves ",
                         tier.served.model, " (", tier.served.model_digest, ")"),
      kMismatchReason);
}

void Cluster::Fail(const ReplicaPtr& replica, const Status& error) {
  ++replica->attempt;  // late callbacks of this connection are ignored
  tiers_[replica->tier]->ejections.OnConnectionLost(replica->id, RealClock().Now());
  replica->reports->WaitForSuccess();  // it may be on trial
  replica->is_synchronised = false;
  if (replica->call != nullptr) replica->call->Cancel();
  replica->call.reset();
  const int doublings = std::min(replica->failures++, kMaxBackoffDoublings);
  const double jitter = 0.5 + RandomUniform(options_.seed, jitter_draws_++);  // [0.5, 1.5)
  const Duration delay(static_cast<Duration::rep>(
      jitter * static_cast<double>(options_.connect_backoff.count()) * (1 << doublings)));
  const std::string message = Message(error);
  if (message != replica->last_error) {
    Log(LogLevel::kWarn, "replica_failed",
        {{"tier", tiers_[replica->tier]->name}, {"replica", replica->address}, {"error", message}});
  }
  replica->last_error = message;
  replica->load = {};
  const bool is_mismatch = Reason(error) == kMismatchReason;
  SetState(replica, is_mismatch ? ReplicaState::kMismatch : ReplicaState::kConnecting);
  Publish();
  ForgetPrefixesSoon(replica);
  loop_->After(delay, [this, replica] { Connect(replica); });
}

// Of all that are lost at once in one pass.
void Cluster::ForgetPrefixesSoon(const ReplicaPtr& replica) {
  lost_.push_back(replica);
  if (lost_.size() > 1) return;
  loop_->After(kPublishDelay, [this] {
    std::map<size_t, std::vector<PrefixIndex::Slot>> slots;  // by tier
    for (const ReplicaPtr& lost : std::exchange(lost_, {})) {
      if (!lost->is_removed && !lost->is_synchronised) slots[lost->tier].push_back(lost->prefix_slot);
    }
    for (const auto& [tier, of_tier] : slots) tiers_[tier]->prefixes->Clear(of_tier);
  });
}

void Cluster::SetState(const ReplicaPtr& replica, ReplicaState state) {
  if (replica->state == state) return;
  Log(LogLevel::kInfo, "replica_state",
      {{"tier", tiers_[replica->tier]->name},
       {"replica", replica->address},
       {"from", ReplicaStateName(replica->state)},
       {"to", ReplicaStateName(state)}});
  replica->state = state;
  if (state == ReplicaState::kDraining) replica->is_leaving = true;
  if (state == ReplicaState::kReady) replica->is_leaving = false;
  if (state == ReplicaState::kReady) replica->in_use_since = RealClock().Now();
}

// `fault`: as FaultOf has it, "" when the call succeeded. What a replica fails at that is lost, silent or
// draining does not matter: it takes no requests anyway.
void Cluster::OnCallEnd(const ReplicaPtr& replica, std::string_view fault, uint64_t successes_before) {
  if (replica->is_removed) return;
  Tier& tier = *tiers_[replica->tier];
  if (fault.empty()) return tier.ejections.OnSuccess(replica->id);
  if (replica->state != ReplicaState::kReady) return;
  const auto ejected =
      tier.ejections.OnFailure(replica->id, RealClock().Now(),
                               {.replicas = tier.replicas.size(), .in_use = tier.in_use()}, successes_before);
  if (!ejected.has_value()) return;
  metrics_.OnEjection(replica->tier, fault);
  replica->last_error =
      Concat("ejected for ", Seconds(*ejected), " s: its calls failed, the last one as ", fault);
  Log(LogLevel::kWarn, "replica_ejected",
      {{"tier", tier.name}, {"replica", replica->address}, {"cause", fault}, {"seconds", Seconds(*ejected)}});
  loop_->After(*ejected, [this, &tier] {
    LetIn(tier, tier.ejections.EndDue(RealClock().Now()));
    Publish();
  });
  Publish();
}

// The ejections of `replicas` are over.
void Cluster::LetIn(Tier& tier, const std::vector<ReplicaId>& replicas) {
  for (const ReplicaPtr& replica : tier.replicas) {
    if (std::ranges::find(replicas, replica->id) == replicas.end()) continue;
    Log(LogLevel::kInfo, "replica_let_in", {{"tier", tier.name}, {"replica", replica->address}});
    replica->in_use_since = RealClock().Now();
    replica->reports->WaitForSuccess();
  }
}

// A replica that may fail is better than none.
void Cluster::LetInWhenNobodyIsLeft(Tier& tier) {
  if (tier.ejections.ejected() == 0 || tier.in_use() > 0) return;
  LetIn(tier, tier.ejections.EndAll(RealClock().Now()));
}

// `due`: when it was to run. What arrived in time counts, also where this thread was too busy to look at it.
void Cluster::CheckSilence(MonoTime due) {
  bool changed = false;
  std::vector<ReplicaPtr> hung;
  const Duration period = options_.watch_timeout / 8;  // it may be so long until the next look
  for (const auto& tier : tiers_) {
    for (const ReplicaPtr& replica : tier->replicas) {
      const bool is_watched =
          replica->state == ReplicaState::kReady || replica->state == ReplicaState::kDraining ||
          replica->state == ReplicaState::kRefused || replica->state == ReplicaState::kStarting ||
          replica->state == ReplicaState::kStalled;
      if (is_watched && due - replica->last_update >= options_.watch_timeout - period) {
        replica->last_error = Concat("no update for ", Seconds(options_.watch_timeout), " s");
        SetState(replica, ReplicaState::kSilent);
        changed = true;
      }
      if (IsHung(replica->state)) hung.push_back(replica);
    }
  }
  if (changed) Publish();
  // Their answers go on elsewhere, now that nobody picks them any more. Each time again: a call may have been
  // on its way.
  for (const ReplicaPtr& replica : hung) EndCallsOfHung(*replica);
  if (token_cache_ != nullptr) metrics_.OnTokenCache(token_cache_->counts());
  loop_->After(period, [this, next = RealClock().Now() + period] { CheckSilence(next); });
}

void Cluster::EndCallsOfHung(const Replica& replica) {
  replica.connection->EndCalls(WithReason(Unavailable(replica.last_error), kSilentReason));
}

void Cluster::PublishSoon() {
  if (std::exchange(is_publish_due_, true)) return;
  loop_->After(kPublishDelay, [this] {
    if (is_publish_due_) Publish();
  });
}

void Cluster::Publish() {
  is_publish_due_ = false;
  auto view = std::make_shared<ClusterView>();
  const MonoTime now = RealClock().Now();
  for (const auto& tier : tiers_) {
    LetInWhenNobodyIsLeft(*tier);
    TierView& out = view->tiers.emplace_back();
    out.name = tier->name;
    out.text = tier->text;
    out.model = tier->served.model;
    out.model_digest = tier->served.model_digest;
    out.text_digest = tier->served.text_digest;
    out.parameters = tier->served.parameters;
    out.vocab_size = tier->served.vocab_size;
    out.context_length = tier->served.context_length;
    out.prefixes = tier->prefixes;
    for (const ReplicaPtr& replica : tier->replicas) {
      const bool is_ejected =
          replica->state == ReplicaState::kReady && tier->ejections.IsEjected(replica->id);
      out.replicas.push_back(
          {.id = replica->id,
           .address = replica->address,
           .state = is_ejected ? ReplicaState::kEjected : replica->state,
           .description = replica->description,
           .load = replica->load,
           .others = replica->others,
           .last_error = replica->last_error,
           .refusal = replica->state == ReplicaState::kRefused ? Reason(replica->admission) : std::string(),
           .client = replica->connection,
           .prefix_slot = replica->prefix_slot,
           .in_flight = replica->in_flight,
           .observer = replica->reports,
           .is_leaving = replica->is_leaving,
           .weight = SlowStartWeight(now - replica->in_use_since, options_.slow_start)});
      if (replica->state == ReplicaState::kReady) {
        out.context_length = std::min(out.context_length, replica->description.context_length);
      }
    }
    out.FindReady();
  }
  {
    std::lock_guard lock(view_mutex_);
    view_ = view;
  }
  if (options_.on_change) options_.on_change(*view);
}

}  // namespace terrace
