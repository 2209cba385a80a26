#include "router/dispatch/attempts.h"

#include <vector>

namespace terrace {

StatusOr<const ReplicaView*> PickReplica(DispatchState& state, const Request& request, const TierView& tier,
                                         const std::set<ReplicaId>& tried) {
  std::vector<Candidate> candidates;
  for (const ReplicaView& replica : tier.replicas) {
    if (replica.state != ReplicaState::kReady || tried.contains(replica.id)) continue;
    candidates.push_back({replica.id, replica.load.running_sequences, replica.load.waiting_sequences});
  }
  if (candidates.empty()) {
    return WithReason(Unavailable("no worker of tier ", tier.name, " is ready"), "no_capacity");
  }
  ASSIGN_OR_RETURN(const ReplicaId id, state.parts.balancer.Pick(request, candidates, state.picks++));
  for (const ReplicaView& replica : tier.replicas) {
    if (replica.id == id) return &replica;
  }
  CHECK(false, "the balancer picked no candidate");
  return nullptr;
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
