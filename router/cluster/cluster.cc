#include "router/cluster/cluster.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/log.h"
#include "base/rng.h"

namespace terrace {
namespace {

constexpr int kMaxBackoffDoublings = 4;
constexpr auto kPublishDelay = std::chrono::milliseconds(10);
constexpr size_t kMostUpdates = 256;  // of one Watch that are not looked at yet: a minute of them

StatusOr<std::shared_ptr<const TextAssets>> CheckText(const std::string& bytes, const std::string& digest) {
  ASSIGN_OR_RETURN(TextAssets text, ParseTextAssets(bytes));
  const std::string got = Digest(text).Hex();
  if (got != digest) return DataLoss("text assets: digest ", got, ", the worker announced ", digest);
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

}  // namespace

struct Cluster::Replica {
  ReplicaId id = 0;
  size_t tier = 0;
  std::string address;
  std::shared_ptr<WorkerConnection> connection;
  bool is_removed = false;

  ReplicaState state = ReplicaState::kConnecting;
  ReplicaDescription description;
  ReplicaLoad load;
  std::string last_error;
  MonoTime last_update;
  int failures = 0;      // in a row
  uint64_t attempt = 0;  // counts connections; callbacks of an earlier one are ignored
  PrefixIndex::Slot prefix_slot = 0;
  bool is_synchronised = false;            // this Watch has brought something sound
  std::optional<MonoTime> resynchronised;  // the last time
  const std::shared_ptr<ReplicaInFlight> in_flight = std::make_shared<ReplicaInFlight>();
  std::unique_ptr<CallHandle> call;  // the one Describe, FetchText or Watch in progress
};

struct Cluster::Tier {
  std::string name = {};
  std::vector<ReplicaPtr> replicas = {};
  ReplicaDescription served = {};  // what the ready replicas share
  std::shared_ptr<const TextAssets> text = {};
  std::shared_ptr<PrefixIndex> prefixes = std::make_shared<PrefixIndex>();
};

Cluster::Cluster(ClusterOptions options)
    : options_(std::move(options)), loop_(std::make_shared<EventLoop>()) {
  for (const auto& tier : options_.tiers) tiers_.push_back(std::make_unique<Tier>(Tier{.name = tier.name}));
  {  // A view exists from the start: all tiers, no replica yet.
    auto view = std::make_shared<ClusterView>();
    for (const auto& tier : options_.tiers) view->tiers.push_back({.name = tier.name});
    view_ = std::move(view);
  }
  Post([this] { CheckSilence(RealClock().Now()); });
  discovery_ = std::jthread([this](std::stop_token stop) { DiscoverForever(stop); });
}

Cluster::~Cluster() {
  discovery_.request_stop();
  discovery_.join();
  loop_->Stop();
  for (const auto& tier : tiers_) {
    for (const ReplicaPtr& replica : tier->replicas) {
      if (replica->call != nullptr) replica->call->Cancel();
    }
  }
}

std::shared_ptr<const ClusterView> Cluster::View() const {
  std::lock_guard lock(view_mutex_);
  return view_;
}

void Cluster::DiscoverForever(std::stop_token stop) {
  std::mutex mutex;
  std::condition_variable_any stopped;
  while (!stop.stop_requested()) {
    for (size_t i = 0; i < options_.tiers.size() && !stop.stop_requested(); ++i) {
      Discovered found = options_.tiers[i].discovery->Resolve();
      for (const Status& error : found.errors) {
        Log(LogLevel::kWarn, "discovery_failed",
            {{"tier", options_.tiers[i].name}, {"error", Message(error)}});
      }
      Post([this, i, addresses = std::move(found.addresses)] { SetAddresses(i, addresses); });
    }
    std::unique_lock lock(mutex);
    stopped.wait_for(lock, stop, options_.dns_refresh, [] { return false; });
  }
}

void Cluster::SetAddresses(size_t tier_index, const std::vector<std::string>& addresses) {
  Tier& tier = *tiers_[tier_index];
  std::vector<PrefixIndex::Slot> removed;
  std::erase_if(tier.replicas, [&](const ReplicaPtr& replica) {
    if (std::find(addresses.begin(), addresses.end(), replica->address) != addresses.end()) return false;
    replica->is_removed = true;
    if (replica->call != nullptr) replica->call->Cancel();
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
    auto replica = std::make_shared<Replica>();
    replica->id = next_id_++;
    replica->tier = tier_index;
    replica->address = address;
    replica->connection = WorkerConnection::Make(address);
    replica->prefix_slot = tier.prefixes->Add();
    tier.replicas.push_back(replica);
    added.push_back(replica);
  }
  if (!removed.empty() || !added.empty()) Publish();
  tier.prefixes->Remove(removed);
  for (const ReplicaPtr& replica : added) Connect(replica);
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
  replica->description = *std::move(description);
  NeedText(replica);
}

void Cluster::NeedText(const ReplicaPtr& replica) {
  const std::string digest = replica->description.text_digest;
  TextEntry& entry = texts_[digest];
  if (entry.text != nullptr) return StartWatch(replica);
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
  Status error = bytes.status();
  if (bytes.ok()) {
    auto text = CheckText(*bytes, digest);
    error = text.status();
    if (text.ok()) entry.text = *std::move(text);
  }
  // Those who waited go on, or try themselves, one after the other.
  for (const auto& waiting : std::exchange(entry.waiting, {})) {
    if (const ReplicaPtr other = waiting.lock(); other != nullptr && !other->is_removed) NeedText(other);
  }
  if (replica->is_removed) return;
  if (!error.ok()) return Fail(replica, error);
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
  Tier& tier = *tiers_[replica->tier];
  if (!Fits(tier, *replica)) {
    SetState(replica, ReplicaState::kMismatch);  // first: Fail keeps it
    return Fail(replica, FailedPrecondition("serves model ", replica->description.model, " (",
                                            replica->description.model_digest, "), the tier serves ",
                                            tier.served.model, " (", tier.served.model_digest, ")"));
  }
  // What is left of an earlier Watch does not count.
  if (!replica->is_synchronised && !update.prefixes.is_snapshot) tier.prefixes->Clear(replica->prefix_slot);
  if (!tier.prefixes->Apply(replica->prefix_slot, update.prefixes)) {
    return Resynchronise(replica, Aborted("watch: the prefixes' digest is not ", update.prefixes.digest));
  }
  replica->is_synchronised = true;
  replica->failures = 0;
  replica->last_error.clear();
  if (update.state == ReplicaState::kReady) {
    tier.served = replica->description;
    tier.text = texts_[replica->description.text_digest].text;
  }
  if (update.state == replica->state) return PublishSoon();
  SetState(replica, update.state);
  Publish();
}

// While any replica of the tier is ready, the others must serve the same; a tier with none takes what comes
// first.
bool Cluster::Fits(Tier& tier, const Replica& replica) const {
  for (const ReplicaPtr& other : tier.replicas) {
    if (other->id == replica.id || other->state != ReplicaState::kReady) continue;
    return other->description.model_digest == replica.description.model_digest &&
           other->description.text_digest == replica.description.text_digest;
  }
  return true;
}

void Cluster::Fail(const ReplicaPtr& replica, const Status& error) {
  ++replica->attempt;  // late callbacks of this connection are ignored
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
  if (replica->state != ReplicaState::kMismatch) SetState(replica, ReplicaState::kConnecting);
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
}

// `due`: when it was to run. What arrived in time counts, also where this thread was too busy to look at it.
void Cluster::CheckSilence(MonoTime due) {
  bool changed = false;
  for (const auto& tier : tiers_) {
    for (const ReplicaPtr& replica : tier->replicas) {
      const bool is_watched = replica->state == ReplicaState::kReady ||
                              replica->state == ReplicaState::kDraining ||
                              replica->state == ReplicaState::kStarting;
      if (!is_watched || due - replica->last_update < options_.watch_timeout) continue;
      replica->last_error = Concat("no update for ", Seconds(options_.watch_timeout), " s");
      SetState(replica, ReplicaState::kSilent);
      changed = true;
    }
  }
  if (changed) Publish();
  const Duration period = options_.watch_timeout / 8;
  loop_->After(period, [this, next = RealClock().Now() + period] { CheckSilence(next); });
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
  for (const auto& tier : tiers_) {
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
      out.replicas.push_back({.id = replica->id,
                              .address = replica->address,
                              .state = replica->state,
                              .description = replica->description,
                              .load = replica->load,
                              .last_error = replica->last_error,
                              .client = replica->connection,
                              .prefix_slot = replica->prefix_slot,
                              .in_flight = replica->in_flight});
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
