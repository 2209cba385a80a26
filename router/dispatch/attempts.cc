#include "router/dispatch/attempts.h"

#include <algorithm>
#include <vector>

#include "text/block_key.h"

namespace terrace {

namespace {

// How many of the prompt's first tokens each replica has, by prefix slot, as far as the tier's index knows.
std::vector<uint32_t> CachedTokens(const TierView& tier, const std::string& salt,
                                   std::span<const TokenId> prompt) {
  std::vector<uint32_t> cached, matched;
  std::vector<Hash128> keys;
  std::vector<uint64_t> short_keys;
  if (tier.prefixes == nullptr || prompt.empty()) return cached;
  for (const KvNaming& naming : tier.kv_namings) {
    BlockKeyScope scope = naming.scope;
    scope.salt = salt;
    keys.clear();
    // The last token is always computed: its logits are wanted.
    ExtendBlockKeys(RootBlockKey(scope), prompt.first(prompt.size() - 1), naming.block_tokens, keys);
    short_keys.resize(keys.size());
    std::ranges::transform(keys, short_keys.begin(), ShortKey);
    tier.prefixes->Match(short_keys, matched);
    cached.resize(std::max(cached.size(), matched.size()));
    // A key names its scope: who names blocks otherwise has none of these.
    for (size_t slot = 0; slot < matched.size(); ++slot) {
      cached[slot] = std::max(cached[slot], matched[slot] * naming.block_tokens);
    }
  }
  return cached;
}

}  // namespace

Status NoCapacity(const TierView& tier) {
  return WithReason(Unavailable("no worker of tier ", tier.name, " is ready"), "no_capacity");
}

StatusOr<PickedReplica> PickReplica(DispatchState& state, const Request& request, const ClusterView& view,
                                    size_t tier_index, std::span<const TokenId> prompt,
                                    const std::set<ReplicaId>& tried) {
  const TierView& tier = view.tiers[tier_index];
  const std::vector<uint32_t> cached = CachedTokens(tier, request.cache_salt(), prompt);
  std::vector<Candidate> candidates;
  std::vector<uint32_t> places;  // of the candidates, in tier.replicas
  candidates.reserve(tier.ready.size());
  places.reserve(tier.ready.size());
  for (const ReadyReplica& replica : tier.ready) {
    if (!tried.empty() && tried.contains(replica.id)) continue;
    // Our own requests may not have reached the replica's report yet, or be in it already.
    candidates.push_back(
        {.sequences = std::max<uint32_t>(replica.sequences, replica.in_flight->requests),
         .cached_tokens = replica.prefix_slot < cached.size() ? cached[replica.prefix_slot] : 0,
         .queued_tokens =
             std::max<uint64_t>(replica.waiting_prompt_tokens, replica.in_flight->prompt_tokens)});
    places.push_back(replica.index);
  }
  if (candidates.empty()) return NoCapacity(tier);
  const Arrival arrival{.prompt_tokens = static_cast<uint32_t>(prompt.size()),
                        .rotation = state.picks[tier_index]++};
  const size_t picked = state.parts.balancer.Pick(arrival, candidates);
  return PickedReplica{&tier.replicas[places[picked]], candidates[picked].cached_tokens};
}

InFlightLease::InFlightLease(std::shared_ptr<ReplicaInFlight> replica, uint32_t prompt_tokens)
    : replica_(std::move(replica)), prompt_tokens_(prompt_tokens) {
  replica_->requests += 1;
  replica_->prompt_tokens += prompt_tokens_;
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
  attempt.price_usd =
      result == kFailed ? 0 : PriceUsd(state.parts.catalog.tiers()[tier].price, attempt.usage);
  summary.usage = attempt.usage;
  summary.price_usd += attempt.price_usd;
  summary.attempts.push_back(attempt);
  state.parts.recorder.OnAttempt(tier, result, attempt);
}

Status DeadlinePassed() {
  return WithReason(DeadlineExceeded("the request's deadline passed"), "deadline_exceeded");
}

Status ClientGone() { return WithReason(Cancelled("the client is gone"), "client_closed"); }

void CancelSlot::Set(std::unique_ptr<CallHandle> handle) {
  bool cancel = false;
  const std::shared_ptr<CallHandle> shared = std::move(handle);
  {
    std::lock_guard lock(mutex_);
    handle_ = shared;
    cancel = is_cancelled_;
  }
  if (cancel) shared->Cancel();
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

std::shared_ptr<CancelSlot> Cancellation::NextSlot() {
  auto slot = std::make_shared<CancelSlot>();
  {
    std::lock_guard lock(mutex_);
    slot_ = slot;
  }
  if (is_cancelled_) slot->Cancel();
  return slot;
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
