#include "router/dispatch/attempts.h"

#include <algorithm>
#include <vector>

#include "base/log.h"
#include "router/balance/slow_start.h"
#include "router/cluster/ejection.h"
#include "router/cluster/replica_client.h"
#include "text/block_key.h"

namespace terrace {

namespace {

// A prompt's whole blocks in order, by the names that some of a tier's replicas have for them.
struct NamedBlocks {
  std::vector<uint64_t> keys = {};  // short ones
  uint32_t block_tokens = 0;
};

// What a look-up works on. A thread keeps it from one to the next: it is a few numbers for each block of the
// longest prompt and for each replica of the largest tier.
struct PickMemory {
  std::vector<Hash128> keys = {};
  std::vector<NamedBlocks> names = {};
  std::vector<uint32_t> cached = {}, matched = {};
  std::vector<Candidate> candidates = {};
};

std::span<const NamedBlocks> NameBlocks(const TierView& tier, const std::string& salt,
                                        std::span<const TokenId> prompt, PickMemory& memory) {
  if (tier.prefixes == nullptr || prompt.empty()) return {};
  memory.names.resize(tier.kv_namings.size());
  for (size_t i = 0; i < memory.names.size(); ++i) {
    const KvNaming& naming = tier.kv_namings[i];
    BlockKeyScope scope = naming.scope;
    scope.salt = salt;
    memory.keys.clear();
    // The last token is always computed: its logits are wanted.
    ExtendBlockKeys(RootBlockKey(scope), prompt.first(prompt.size() - 1), naming.block_tokens, memory.keys);
    NamedBlocks& blocks = memory.names[i];
    blocks.block_tokens = naming.block_tokens;
    blocks.keys.resize(memory.keys.size());
    std::ranges::transform(memory.keys, blocks.keys.begin(), ShortKey);
  }
  return memory.names;
}

// How many of the prompt's first tokens each replica has, by prefix slot, as far as the tier's index knows.
std::span<const uint32_t> CachedTokens(const TierView& tier, std::span<const NamedBlocks> names,
                                       PickMemory& memory) {
  memory.cached.clear();
  if (names.empty()) return memory.cached;
  tier.prefixes->Match(names.front().keys, memory.cached, names.front().block_tokens);
  for (const NamedBlocks& blocks : names.subspan(1)) {
    tier.prefixes->Match(blocks.keys, memory.matched, blocks.block_tokens);
    memory.cached.resize(std::max(memory.cached.size(), memory.matched.size()));
    // A key names its scope: who names blocks otherwise has none of these.
    for (size_t slot = 0; slot < memory.matched.size(); ++slot) {
      memory.cached[slot] = std::max(memory.cached[slot], memory.matched[slot]);
    }
  }
  return memory.cached;
}

// What the replica that was sent such a beginning last will have computed of it, if not yet.
struct UnderWay {
  ReplicaId replica = 0;
  uint32_t tokens = 0;
};
UnderWay FindUnderWay(RecentPrefixes& recent, std::span<const NamedBlocks> names, MonoTime now) {
  if (names.empty()) return {};
  const NamedBlocks& blocks = names.front();  // mostly the only ones
  const auto found = recent.Find(blocks.keys, now);
  if (!found.has_value()) return {};
  return {found->replica, found->blocks * blocks.block_tokens};
}

// `candidates` becomes one for each of `ready`.
void ListCandidates(std::span<const ReadyReplica> ready, std::span<const uint32_t> cached, UnderWay under_way,
                    std::vector<Candidate>& candidates) {
  candidates.resize(ready.size());
  const std::span<Candidate> out = candidates;
  for (size_t i = 0; i < ready.size(); ++i) {
    const ReadyReplica& replica = ready[i];
    const uint32_t known = replica.prefix_slot < cached.size() ? cached[replica.prefix_slot] : 0;
    const ReplicaInFlight& ours = *replica.in_flight;
    const uint32_t sequences = replica.others.sequences + ours.requests.load(std::memory_order_relaxed);
    const uint64_t queued = replica.others.prompt_tokens + ours.prompt_tokens.load(std::memory_order_relaxed);
    out[i] = {.sequences = sequences, .cached_tokens = known, .queued_tokens = queued};
    if (replica.id != under_way.replica || known >= under_way.tokens) continue;
    // It computes this very beginning: what of it is queued is no work that this request adds, or has to do
    // again.
    out[i].cached_tokens = under_way.tokens;
    out[i].queued_tokens = queued - std::min<uint64_t>(queued, under_way.tokens - known);
  }
}

// The places in `ready` of those that are not in `tried`.
std::vector<size_t> UntriedPlaces(std::span<const ReadyReplica> ready, const std::set<ReplicaId>& tried) {
  std::vector<size_t> out;
  for (size_t i = 0; i < ready.size(); ++i) {
    if (!tried.contains(ready[i].id)) out.push_back(i);
  }
  return out;
}

// Leaves values[places[i]], in this order. `places` rise.
template <typename T>
void KeepPlaces(std::span<const size_t> places, std::vector<T>& values) {
  for (size_t i = 0; i < places.size(); ++i) values[i] = values[places[i]];
  values.resize(places.size());
}

constexpr Duration kMostApart = std::chrono::seconds(1);  // that others than prime suspects wait

Hash128 FingerprintOf(const AttemptQuery& query) {
  return RequestFingerprint(query.view.tiers[query.tier].model_digest, query.request.tenant()->name,
                            query.prompt);
}

// Which replicas a suspect keeps away from, the best choice first.
std::vector<std::set<ReplicaId>> AvoidedBy(bool is_prime, const Quarantine::Others& others,
                                           const TierView& tier) {
  std::vector<std::set<ReplicaId>> out = {others.suspects};
  if (!is_prime) out.push_back(others.primes);
  if (is_prime && !others.own.empty()) {  // one of its own is on trial: it joins that
    for (const ReadyReplica& replica : tier.ready) {
      if (!others.own.contains(replica.id)) out.front().insert(replica.id);
    }
  }
  return out;
}

// One of kRetryReasons.
std::string_view RetryReason(const Status& failure) {
  if (failure.code() == StatusCode::kResourceExhausted) return "overloaded";
  const std::string_view fault = FaultOf(failure);
  return fault.empty() ? "unavailable" : fault;  // it drains, or was replaced
}

}  // namespace

Status NoCapacity(const TierView& tier) {
  // One that was just let in has none.
  const auto refused =
      std::ranges::find_if(tier.replicas, [](const ReplicaView& each) { return !each.refusal.empty(); });
  if (tier.ready.empty() && refused != tier.replicas.end()) {
    return WithReason(
        Unavailable("tier ", tier.name, " may not serve the model that its workers have: ", refused->refusal),
        kNotCertifiedReason);
  }
  return WithReason(Unavailable("no worker of tier ", tier.name, " is ready"), "no_capacity");
}

Status ModelReplaced() {
  return WithReason(
      Unavailable("the worker that ran this request was lost, and its tier serves another model now"),
      "worker_lost");
}

StatusOr<PickedReplica> PickReplica(DispatchState& state, const Request& request, const ClusterView& view,
                                    size_t tier_index, std::span<const TokenId> prompt,
                                    const std::set<ReplicaId>& tried) {
  const TierView& tier = view.tiers[tier_index];
  const MonoTime now = state.parts.clock.Now();
  thread_local PickMemory memory;
  const std::span<const NamedBlocks> names = NameBlocks(tier, request.cache_salt(), prompt, memory);
  const std::span<const uint32_t> cached = CachedTokens(tier, names, memory);
  const UnderWay under_way = FindUnderWay(state.recent[tier_index], names, now);
  std::vector<Candidate>& candidates = memory.candidates;
  ListCandidates(tier.ready, cached, under_way, candidates);
  std::vector<float> weights = tier.weights;  // of the candidates, when they differ
  std::vector<size_t> places;                 // of the candidates, in tier.ready, once some were tried
  if (!tried.empty()) {
    places = UntriedPlaces(tier.ready, tried);
    KeepPlaces(places, candidates);
    if (!weights.empty()) KeepPlaces(places, weights);
  }
  if (candidates.empty()) return NoCapacity(tier);
  const Arrival arrival{.prompt_tokens = static_cast<uint32_t>(prompt.size()),
                        .rotation = state.picks[tier_index]++};
  const size_t picked = weights.empty() ? state.parts.balancer.Pick(arrival, candidates)
                                        : PickBySlowStart(state.parts.balancer, arrival, candidates, weights);
  const ReadyReplica& ready = tier.ready[tried.empty() ? picked : places[picked]];
  const ReplicaView& replica = tier.replicas[ready.index];
  if (!names.empty()) state.recent[tier_index].Add(names.front().keys, replica.id, now);
  return PickedReplica{&replica, candidates[picked].cached_tokens};
}

StatusOr<PickedReplica> PickAndCount(DispatchState& state, const Request& request, const ClusterView& view,
                                     size_t tier, std::span<const TokenId> prompt,
                                     const std::set<ReplicaId>& tried) {
  using enum Recorder::PickResult;
  const MonoTime begin = state.parts.clock.Now();
  const auto picked = PickReplica(state, request, view, tier, prompt, tried);
  const auto result = !picked.ok() ? kNone : picked->cached_tokens > 0 ? kCached : kUncached;
  state.parts.recorder.OnPick(tier, result, Seconds(state.parts.clock.Now() - begin));
  return picked;
}

size_t MostCachedTokens(const TierView& tier, const std::string& salt, std::span<const TokenId> prompt) {
  thread_local PickMemory memory;
  const std::span<const uint32_t> cached = CachedTokens(tier, NameBlocks(tier, salt, prompt, memory), memory);
  uint32_t most = 0;
  for (const ReadyReplica& replica : tier.ready) {
    if (replica.prefix_slot < cached.size()) most = std::max(most, cached[replica.prefix_slot]);
  }
  return most;
}

std::string_view ResumeReason(const Status& failure) {
  const std::string reason = Reason(failure);
  if (reason == kSilentReason) return "silent";
  if (reason == "draining" || reason == "wrong_instance") return "draining";
  return RetryReason(failure);
}

Status CheckQuarantine(DispatchState& state, const AttemptQuery& query) {
  if (state.quarantine->is_empty()) return {};  // nearly always: then nothing is hashed
  if (!state.quarantine->Has(FingerprintOf(query))) return {};
  state.parts.recorder.OnPoison(query.tier, Recorder::PoisonEvent::kRefused);
  return PoisonRequest();
}

void RecordQuarantined(const DispatcherParts& parts, size_t tier, const Request& request) {
  parts.recorder.OnPoison(tier, Recorder::PoisonEvent::kQuarantined);
  Log(LogLevel::kError, "request_quarantined",
      {{"request_id", request.request_id()}, {"tier", parts.catalog.tiers()[tier].name}});
}

Status JudgeDeath(DispatchState& state, const DeadAttempt& dead, WorkerLosses& losses, const Status& error) {
  const Hash128 request = RequestFingerprint(dead.model_digest, dead.request.tenant()->name, dead.prompt);
  const IsBack is_back = BackAt(state.parts);
  const Blame of_answer = losses.OnLoss(dead.death, is_back);
  const Blame of_prompt = state.quarantine->OnDeath(request, dead.death, is_back);
  const Blame blame = std::max(of_answer, of_prompt);
  if (blame == Blame::kNone) return {};
  if (blame == Blame::kUnclear) return ClientError(error);
  state.quarantine->Add(request);
  RecordQuarantined(state.parts, dead.tier, dead.request);
  return PoisonRequest();
}

StatusOr<Boarded> PickApart(DispatchState& state, const AttemptQuery& query, const Pick& pick) {
  Quarantine& quarantine = *state.quarantine;
  const TierView& tier = query.view.tiers[query.tier];
  const bool may_be_suspect = !quarantine.is_empty();  // rarely: else nothing is hashed
  const Hash128 request = may_be_suspect ? FingerprintOf(query) : Hash128();
  if (!may_be_suspect || !quarantine.IsSuspect(request)) {
    ASSIGN_OR_RETURN(const PickedReplica picked, pick(query.tried));
    return Boarded{.picked = picked};
  }
  std::lock_guard turn(quarantine.turn());
  const bool is_prime = !query.has_begun;
  const Duration patience = state.parts.retries.resume_patience;
  std::vector<std::set<ReplicaId>> avoided = AvoidedBy(is_prime, quarantine.OthersThan(request), tier);
  if (query.waited >= (is_prime ? patience : std::min(kMostApart, patience))) avoided.emplace_back();
  Status none;
  for (std::set<ReplicaId>& excluded : avoided) {
    excluded.insert(query.tried.begin(), query.tried.end());
    const StatusOr<PickedReplica> picked = pick(excluded);
    if (picked.ok())
      return Boarded{.picked = *picked, .trial = quarantine.Board(request, is_prime, picked->replica->id)};
    none = picked.status();
  }
  const bool is_one_ready = std::ranges::any_of(
      tier.ready, [&](const ReadyReplica& replica) { return !query.tried.contains(replica.id); });
  if (!is_one_ready) return none;
  return WithReason(Unavailable("other requests that were at a worker's death run on every worker"),
                    kKeptApartReason);
}

bool IsWorkerDeath(const DispatcherParts& parts, size_t tier, ReplicaId replica, const Status& error,
                   bool had_begun) {
  const std::string reason = Reason(error);
  if (reason == kDeviceLostReason) return true;  // it drains by now, and not by its will
  if (error.code() != StatusCode::kUnavailable) return false;
  // What else a worker says itself, as that it drains, has a reason, and so has that it was not there.
  if (!reason.empty() && !(reason == kSilentReason && had_begun)) return false;
  const auto view = parts.cluster.View();
  const auto& replicas = view->tiers[tier].replicas;
  const auto found = std::ranges::find(replicas, replica, &ReplicaView::id);
  return found != replicas.end() && !found->is_leaving;  // else it was to go
}

IsBack BackAt(const DispatcherParts& parts) {
  return [&parts](const std::string& process) {
    const auto view = parts.cluster.View();
    const auto is_it = [&](const ReplicaView& replica) {
      const bool is_heard = !IsHung(replica.state) && replica.state != ReplicaState::kConnecting;
      return is_heard && replica.description.instance == process;
    };
    return std::ranges::any_of(
        view->tiers, [&](const TierView& tier) { return std::ranges::any_of(tier.replicas, is_it); });
  };
}

InFlightLease::InFlightLease(std::shared_ptr<ReplicaInFlight> replica, uint32_t prompt_tokens)
    : replica_(std::move(replica)), prompt_tokens_(prompt_tokens) {
  replica_->requests += 1;
  replica_->prompt_tokens += prompt_tokens_;
}

Status CountAttempt(DispatchState& state, size_t tier, bool is_first, const Status& failure) {
  if (is_first) {
    state.budgets[tier].OnRequest();
    return {};
  }
  const bool is_allowed = state.budgets[tier].TakeRetry();
  state.parts.recorder.OnRetry(tier, RetryReason(failure), is_allowed);
  return is_allowed ? Status() : ResourceExhausted("too many retries lately");
}

void InFlightLease::EndPrompt() {
  if (replica_ != nullptr) replica_->prompt_tokens -= std::exchange(prompt_tokens_, 0);
}

void InFlightLease::End() {
  EndPrompt();
  if (replica_ != nullptr) replica_->requests -= 1;
  replica_.reset();
}

bool IsRetryable(const Status& status) {
  switch (status.code()) {
    case StatusCode::kUnavailable:
    case StatusCode::kResourceExhausted:
    case StatusCode::kCancelled:  // not by us: the worker is going down
    case StatusCode::kAborted:
    case StatusCode::kUnknown:
      return true;
    case StatusCode::kInternal:
      return Reason(status) != "numeric_error";  // the same on every replica
    default:
      return false;
  }
}

Status ClientError(const Status& worker_error) {
  const std::string reason = Reason(worker_error);
  switch (worker_error.code()) {
    case StatusCode::kDeadlineExceeded:
      return DeadlinePassed();
    case StatusCode::kInvalidArgument:
      return worker_error;
    case StatusCode::kResourceExhausted:
      return WithReason(ResourceExhausted("every worker's queue is full"), "overloaded");
    case StatusCode::kInternal:
      if (reason == "numeric_error")
        return WithReason(Internal("the model gave a number that is not finite"), reason);
      if (!reason.empty()) return WithReason(Internal("the worker failed"), reason);
      break;
    default:
      break;
  }
  return WithReason(Unavailable("the worker that ran this request was lost"), "worker_lost");
}

Recorder::AttemptResult ResultOf(const Status& error) {
  using enum Recorder::AttemptResult;
  return error.code() == StatusCode::kDeadlineExceeded ? kAbandoned : kFailed;
}

TokenUsage BrokenOffUsage(Recorder::AttemptResult result, const TokenUsage& so_far) {
  if (result == Recorder::AttemptResult::kFailed && so_far.completion_tokens == 0) return {};
  return so_far;
}

void RecordAttempt(DispatchState& state, size_t tier, Recorder::AttemptResult result, AnswerAttempt& attempt,
                   AnswerSummary& summary) {
  using enum Recorder::AttemptResult;
  attempt.accepted = result == kAccepted;
  TokenUsage billed = attempt.usage;
  billed.completion_tokens += attempt.resumed_tokens;
  attempt.price_usd = result == kFailed ? 0 : PriceUsd(state.parts.catalog.tiers()[tier].price, billed);
  summary.usage = attempt.usage;
  summary.price_usd += attempt.price_usd;
  summary.attempts.push_back(attempt);
  state.parts.recorder.OnAttempt(tier, result, attempt);
}

Status DeadlinePassed() {
  return WithReason(DeadlineExceeded("the request's deadline passed"), "deadline_exceeded");
}

Status ClientGone() { return WithReason(Cancelled("the client is gone"), "client_closed"); }
Status ClientTooSlow() { return WithReason(Cancelled("the client did not read its answer"), "slow_reader"); }

void CancelSlot::Set(std::shared_ptr<CallHandle> handle) {
  bool cancel = false;
  {
    std::lock_guard lock(mutex_);
    handle_ = handle;
    cancel = is_cancelled_;
  }
  if (cancel) handle->Cancel();
  handle->Resume();
}

void CancelSlot::Cancel() {
  std::shared_ptr<CallHandle> handle;
  {
    std::lock_guard lock(mutex_);
    is_cancelled_ = true;
    handle = handle_;
  }
  if (handle != nullptr) handle->Cancel();
}

void CancelSlot::Resume() {
  std::shared_ptr<CallHandle> handle;
  {
    std::lock_guard lock(mutex_);
    handle = handle_;
  }
  if (handle != nullptr) handle->Resume();
}

std::shared_ptr<CancelSlot> Cancellation::NextSlot() {
  auto slot = std::make_shared<CancelSlot>();
  {
    std::lock_guard lock(mutex_);
    slot_ = slot;
  }
  if (is_cancelled_) slot->Cancel();
  return slot;
}

void Cancellation::Resume() {
  std::shared_ptr<CancelSlot> slot;
  {
    std::lock_guard lock(mutex_);
    slot = slot_;
  }
  if (slot != nullptr) slot->Resume();
}

void Cancellation::Cancel() {
  is_cancelled_ = true;
  std::shared_ptr<CancelSlot> slot;
  {
    std::lock_guard lock(mutex_);
    slot = slot_;
  }
  if (slot != nullptr) slot->Cancel();
}

}  // namespace terrace
