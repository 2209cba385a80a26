// What Generation and Scoring share: picking replicas, cancelling calls, reading failures.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "router/balance/recent_prefixes.h"
#include "router/cluster/replica_client.h"
#include "router/dispatch/dispatcher.h"
#include "router/dispatch/poison.h"
#include "router/dispatch/running_requests.h"
#include "router/dispatch/shadows.h"
#include "router/dispatch/timers.h"
#include "router/dispatch/waiting_room.h"

namespace terrace {

// Of one dispatcher. Thread-safe; shared by its requests.
struct DispatchState {
  explicit DispatchState(const DispatcherParts& from)
      : parts(from),
        picks(from.catalog.tiers().size()),
        quarantine(from.quarantine != nullptr ? from.quarantine : std::make_shared<Quarantine>(from.clock)) {
    while (budgets.size() < picks.size()) budgets.emplace_back(from.retries.ratio, from.clock);
    while (recent.size() < picks.size()) recent.emplace_back();
  }
  const DispatcherParts parts;
  std::vector<std::atomic<uint64_t>> picks;  // by tier: the balancer's rotation
  std::deque<RecentPrefixes> recent;         // by tier
  std::deque<RetryBudget> budgets;           // by tier
  std::atomic<uint64_t> seeds = 0;           // drawn so far
  WaitingRoom waiting;
  Timers timers;
  RunningRequests running;
  const std::shared_ptr<Quarantine> quarantine;
  const std::shared_ptr<Shadows> shadows = std::make_shared<Shadows>(parts, *quarantine);
};

// A replica, and how much of the prompt it is believed to have in its cache.
struct PickedReplica {
  const ReplicaView* replica = nullptr;
  uint32_t cached_tokens = 0;
};
// A ready replica of the view's `tier` that is not in `tried`; NoCapacity when there is none.
// `view` outlives the result.
StatusOr<PickedReplica> PickReplica(DispatchState& state, const Request& request, const ClusterView& view,
                                    size_t tier, std::span<const TokenId> prompt,
                                    const std::set<ReplicaId>& tried);
// The same, counted and timed.
StatusOr<PickedReplica> PickAndCount(DispatchState& state, const Request& request, const ClusterView& view,
                                     size_t tier, std::span<const TokenId> prompt,
                                     const std::set<ReplicaId>& tried);
// How much of `prompt` the ready replica of the tier that has most of it has in its cache, as far as is
// known.
size_t MostCachedTokens(const TierView& tier, const std::string& salt, std::span<const TokenId> prompt);
// UNAVAILABLE: no_capacity, or model_not_certified when one would be ready but for its model. IsNoCapacity of
// both.
inline constexpr std::string_view kNotCertifiedReason = "model_not_certified";
Status NoCapacity(const TierView& tier);
inline bool IsNoCapacity(std::string_view reason) {
  return reason == "no_capacity" || reason == kNotCertifiedReason;
}
Status ModelReplaced();  // UNAVAILABLE (worker_lost): an answer cannot go on with another model
// Before an attempt at `tier`: the first of an answer counts as a request; another, after `failure` of the
// one before, is counted as a retry, or refused with RESOURCE_EXHAUSTED when there have been too many.
Status CountAttempt(DispatchState& state, size_t tier, bool is_first, const Status& failure);
// Why an answer that had begun needs another attempt: one of kResumeReasons.
std::string_view ResumeReason(const Status& failure);

struct AttemptQuery {
  const Request& request;
  const ClusterView& view;
  size_t tier = 0;
  std::span<const TokenId> prompt = {};
  std::set<ReplicaId> tried = {};  // not to be asked
  bool has_begun = false;          // the answer
  Duration waited = {};            // so far
};
// INTERNAL, kPoisonReason, for a prompt of the request's tenant that is quarantined for the tier's model.
Status CheckQuarantine(DispatchState& state, const AttemptQuery& query);
// Whether a call that ended with `error` lost its worker, by no will of the worker's or its operator's; one
// that is silent only where it `had_begun` with the call (poison.h).
bool IsWorkerDeath(const DispatcherParts& parts, size_t tier, ReplicaId replica, const Status& error,
                   bool had_begun);
// WorkerDeath::silent of a call to the process `instance` that ended with `error`.
inline std::string SilentProcess(const std::string& instance, const Status& error) {
  return Reason(error) == kSilentReason ? instance : "";
}
// For Quarantine: what the view says now.
IsBack BackAt(const DispatcherParts& parts);
void RecordQuarantined(const DispatcherParts& parts, size_t tier, const Request& request);
// An attempt whose worker died.
struct DeadAttempt {
  size_t tier = 0;
  const std::string& model_digest;
  const Request& request;
  std::span<const TokenId> prompt = {};
  WorkerDeath death = {};
};
// OK: it may be tried at another worker. Else the request's end: kPoisonReason when it is quarantined from
// now on, or `error` as its client may see it (worker_lost). `losses` are of its answer.
Status JudgeDeath(DispatchState& state, const DeadAttempt& dead, WorkerLosses& losses, const Status& error);

// Of what waits to be kept apart from other suspects (poison.h), by the WaitingRoom; no client sees it.
inline constexpr char kKeptApartReason[] = "kept_apart";
struct Boarded {
  PickedReplica picked = {};
  Quarantine::Trial trial = {};  // of a suspect
};
using Pick = std::function<StatusOr<PickedReplica>(const std::set<ReplicaId>& excluded)>;
// What `pick` picks; of a suspect apart from others. UNAVAILABLE (kKeptApartReason) where it cannot be yet.
StatusOr<Boarded> PickApart(DispatchState& state, const AttemptQuery& query, const Pick& pick);

// An attempt's part of its replica's ReplicaInFlight. One thread at a time.
class InFlightLease {
 public:
  InFlightLease() = default;
  InFlightLease(std::shared_ptr<ReplicaInFlight> replica, uint32_t prompt_tokens);
  InFlightLease(InFlightLease&& other) noexcept
      : replica_(std::move(other.replica_)), prompt_tokens_(std::exchange(other.prompt_tokens_, 0)) {}
  InFlightLease& operator=(InFlightLease&& other) noexcept {
    std::swap(replica_, other.replica_);
    std::swap(prompt_tokens_, other.prompt_tokens_);
    return *this;
  }
  ~InFlightLease() { End(); }

  void EndPrompt();  // it is computed. Idempotent
  void End();        // the attempt is over. Idempotent

 private:
  std::shared_ptr<ReplicaInFlight> replica_;
  uint32_t prompt_tokens_ = 0;
};

// Another replica may do what this one did not.
bool IsRetryable(const Status& status);
// A worker's failure as the client may see it: no addresses, one reason per cause (docs/errors.md).
Status ClientError(const Status& worker_error);

// Whose end an attempt's `error` is: a deadline is the client's, anything else the worker's.
Recorder::AttemptResult ResultOf(const Status& error);
// What an attempt that broke off counts, of which `so_far` is known. A failed one of which no token came
// counts nothing: its worker may never have begun.
TokenUsage BrokenOffUsage(Recorder::AttemptResult result, const TokenUsage& so_far);
// The end of `attempt`, whose usage is set: prices it, adds it to the request's summary, counts it. What the
// client abandoned is priced as done, with what it went on behind; what a worker failed at costs nothing.
void RecordAttempt(DispatchState& state, size_t tier, Recorder::AttemptResult result, AnswerAttempt& attempt,
                   AnswerSummary& summary);

Status DeadlinePassed();
Status ClientGone();
Status ClientTooSlow();

// The call of one attempt: may be cancelled, or resumed, before its handle is known. Thread-safe.
class CancelSlot {
 public:
  void Set(std::shared_ptr<CallHandle> handle);
  void Cancel();
  void Resume();

 private:
  std::mutex mutex_;
  std::shared_ptr<CallHandle> handle_;  // GUARDED_BY(mutex_)
  bool is_cancelled_ = false;           // GUARDED_BY(mutex_)
};

// The current attempt's slot, and whether the client has cancelled. Thread-safe.
class Cancellation {
 public:
  // A fresh slot; cancelled from the start when the client is gone already.
  std::shared_ptr<CancelSlot> NextSlot();
  void Cancel();
  void Resume();  // the current attempt's call
  bool is_cancelled() const { return is_cancelled_; }

 private:
  std::atomic<bool> is_cancelled_ = false;
  std::mutex mutex_;
  std::shared_ptr<CancelSlot> slot_;  // GUARDED_BY(mutex_)
};

}  // namespace terrace
