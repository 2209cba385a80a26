#include "router/dispatch/retry_budget.h"

#include <algorithm>
#include <chrono>

namespace terrace {

void RetryBudget::OnRequest() {
  std::lock_guard lock(mutex_);
  ++Now().requests;
}

bool RetryBudget::TakeRetry() {
  std::lock_guard lock(mutex_);
  Second& now = Now();
  uint64_t requests = 0, retries = 0;
  for (const Second& each : seconds_) {
    if (each.second < 0 || each.second <= now.second - kWindowSeconds) continue;
    requests += each.requests;
    retries += each.retries;
  }
  const auto share = static_cast<uint64_t>(ratio_ * static_cast<double>(requests));
  if (retries >= std::max(kFloor, share)) return false;
  ++now.retries;
  return true;
}

RetryBudget::Second& RetryBudget::Now() {
  const int64_t second = std::chrono::floor<std::chrono::seconds>(clock_.Now()).time_since_epoch().count();
  Second& now = seconds_[static_cast<size_t>(second % kWindowSeconds)];
  if (now.second != second) now = {.second = second};
  return now;
}

}  // namespace terrace
