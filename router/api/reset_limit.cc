#include "router/api/reset_limit.h"

#include "base/retry_after.h"
#include "router/dispatch/recorder.h"

namespace terrace {

void ResetLimit::OnReset(const std::string& peer, MonoTime begin) {
  if (options_.on_reset) options_.on_reset();
  if (options_.max_resets == 0 || Now() - begin >= kQuick) return;
  if (Count(peer) && options_.on_limited) options_.on_limited(peer);
}

bool ResetLimit::Count(const std::string& peer) {
  std::lock_guard lock(mutex_);
  const MonoTime now = clock_.Now();
  if (now >= next_sweep_) {
    std::erase_if(peers_, [&](const auto& each) { return IsOver(each.second, now); });
    next_sweep_ = now + kWindow;
  }
  auto found = peers_.find(peer);
  if (found == peers_.end()) {
    if (peers_.size() >= kMaxPeers) return false;
    found = peers_.try_emplace(peer, Peer{.window_begin = now}).first;
  }
  is_empty_ = false;
  Peer& counted = found->second;
  if (IsOver(counted, now)) counted = {.window_begin = now};
  if (counted.resets > options_.max_resets) return false;  // that was told
  return ++counted.resets > options_.max_resets;
}

Status ResetLimit::Check(const std::string& peer) const {
  std::lock_guard lock(mutex_);
  const auto found = peers_.find(peer);
  if (found == peers_.end() || found->second.resets <= options_.max_resets) return {};
  const Duration left = kWindow - (clock_.Now() - found->second.window_begin);
  if (left <= Duration(0)) return {};
  return WithRetryAfter(
      WithReason(
          ResourceExhausted("this connection has reset more than ", options_.max_resets,
                            " calls at once, before their answers, within ", Seconds(kWindow), " seconds"),
          kTooManyResets),
      Seconds(left));
}

}  // namespace terrace
