#include "router/dispatch/failover.h"

#include "router/dispatch/attempts.h"

namespace terrace {

void Failover::OnToken() {
  has_token_ = true;
  fruitless_ = 0;
  failed_.clear();
  waiting_since_.reset();
  is_out_of_patience_ = false;
}

void Failover::OnFailure(ReplicaId replica, const Status& error, bool counts, MonoTime now) {
  error_ = error;
  failed_[replica] = now;
  if (!counts) {
    if (!waiting_since_.has_value()) waiting_since_ = now;
    is_out_of_patience_ = now - *waiting_since_ >= options_.resume_patience;
    return;
  }
  waiting_since_.reset();
  is_out_of_patience_ = false;
  if (!has_token_) ++fruitless_;
}

bool Failover::may_retry() const {
  return IsRetryable(error_) && fruitless_ < options_.max_attempts && attempts_ < kMostAttempts &&
         !is_out_of_patience_;
}

std::set<ReplicaId> Failover::TriedAt(MonoTime now, bool has_begun) const {
  std::set<ReplicaId> tried;
  for (const auto& [replica, when] : failed_) {
    if (!has_begun || now - when < kRest) tried.insert(replica);
  }
  return tried;
}

Duration Failover::WaitedAt(MonoTime now) const {
  return waiting_since_.has_value() ? now - *waiting_since_ : Duration(0);
}

bool Failover::MayWait(MonoTime now) {
  if (!waiting_since_.has_value()) waiting_since_ = now;
  return now - *waiting_since_ < options_.resume_patience;
}

}  // namespace terrace
