#include "router/cluster/ejection.h"

#include <algorithm>
#include <bit>

namespace terrace {
namespace {

constexpr char kCountedUrl[] = "terrace.dev/counted";

}  // namespace

Status CountedAlready(Status status) {
  status.SetPayload(kCountedUrl, absl::Cord());
  return status;
}

std::string_view FaultOf(const Status& status) {
  if (status.GetPayload(kCountedUrl).has_value()) return "";
  const std::string reason = Reason(status);
  switch (status.code()) {
    case StatusCode::kUnavailable:
      return reason == "draining" || reason == "wrong_instance" ? "" : "unavailable";
    case StatusCode::kCancelled:  // by the worker, as in IsRetryable
    case StatusCode::kAborted:
      return "unavailable";
    case StatusCode::kUnknown:
      return "unknown";
    case StatusCode::kInternal:
    case StatusCode::kDataLoss:
      if (reason == "numeric_error") return "";  // every replica gives it
      return reason == "worker_protocol" ? "protocol" : "internal";
    default:
      return "";
  }
}

void Ejections::OnSuccess(ReplicaId replica) {
  const auto found = records_.find(replica);
  if (found == records_.end() || found->second.until.has_value()) return;
  found->second.failures = 0;
  found->second.is_on_trial = false;
}

std::optional<Duration> Ejections::OnFailure(ReplicaId replica, MonoTime now, const Counts& tier,
                                             uint64_t successes_before) {
  if (options_.consecutive_failures == 0) return std::nullopt;
  Record& record = records_[replica];
  if (record.until.has_value()) return std::nullopt;  // of a call from before
  ++record.failures;
  record.window = successes_before >= 63 ? 1 : record.window << (successes_before + 1) | 1;
  if (!record.is_on_trial && !IsTooMany(record)) return std::nullopt;
  if (!IsOneMoreAllowed(tier)) return std::nullopt;
  ForgetDoublings(record, now);
  const Duration time = TimeAfter(record.doublings);
  if (time < options_.longest) ++record.doublings;
  record.failures = 0;
  record.window = 0;
  record.is_on_trial = false;
  record.until = now + time;
  ++ejected_;
  return time;
}

bool Ejections::IsTooMany(const Record& record) const {
  if (record.failures >= options_.consecutive_failures) return true;
  const uint64_t last = ~uint64_t{0} >> (EjectionOptions::kMostWindowCalls - options_.window_calls);
  return options_.window_failures > 0 &&
         static_cast<uint32_t>(std::popcount(record.window & last)) >= options_.window_failures;
}

bool Ejections::IsOneMoreAllowed(const Counts& tier) const {
  const auto share = static_cast<size_t>(options_.max_share * static_cast<double>(tier.replicas));
  return ejected_ < std::max<size_t>(share, 1) && tier.in_use > 1;
}

Duration Ejections::TimeAfter(uint32_t doublings) const {
  Duration time = options_.first_time;
  for (uint32_t i = 0; i < doublings && time < options_.longest; ++i) time *= 2;
  return std::min(time, options_.longest);
}

void Ejections::ForgetDoublings(Record& record, MonoTime now) const {
  if (!record.let_in.has_value()) return;
  Duration good = now - *record.let_in;
  while (record.doublings > 0 && good >= TimeAfter(record.doublings - 1)) {
    good -= TimeAfter(--record.doublings);
  }
}

void Ejections::End(Record& record, MonoTime now) {
  record.until.reset();
  record.let_in = now;
  record.is_on_trial = true;
  --ejected_;
}

void Ejections::OnConnectionLost(ReplicaId replica, MonoTime now) {
  const auto found = records_.find(replica);
  if (found == records_.end()) return;
  found->second.failures = 0;
  found->second.window = 0;
  if (found->second.until.has_value()) End(found->second, now);
}

std::vector<ReplicaId> Ejections::EndThoseUntil(MonoTime last, MonoTime now) {
  std::vector<ReplicaId> out;
  for (auto& [replica, record] : records_) {
    if (!record.until.has_value() || *record.until > last) continue;
    End(record, now);
    out.push_back(replica);
  }
  return out;
}

void Ejections::Forget(ReplicaId replica) {
  if (IsEjected(replica)) --ejected_;
  records_.erase(replica);
}

bool Ejections::IsEjected(ReplicaId replica) const {
  const auto found = records_.find(replica);
  return found != records_.end() && found->second.until.has_value();
}

}  // namespace terrace
