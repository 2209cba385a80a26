// Counts the gRPC calls that clients reset before anything of their answers was sent, and limits the quick
// ones among them (HTTP/2's rapid reset) by connection: one that resets too many is refused for a while.
// gRPC 1.51 itself neither counts them nor lets a server close one connection; calls that are reset before
// their message has come it does not even show. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "base/status.h"

namespace terrace {

class ResetLimit {
 public:
  static constexpr Duration kWindow = std::chrono::seconds(10);
  // Calls that were open for longer do not count against the limit: they kept their places, and whoever has
  // waited for long may give up.
  static constexpr Duration kQuick = std::chrono::seconds(1);
  static constexpr size_t kMaxPeers = 4096;  // that are counted at once: those beyond are not limited

  struct Options {
    uint32_t max_resets = 0;              // quick ones of one connection in a window; 0: no limit
    std::function<void()> on_reset = {};  // at each
    // A peer has gone beyond the limit: once a window; without a lock.
    std::function<void(std::string_view peer)> on_limited = {};
  };
  ResetLimit(Options options, const Clock& clock) : options_(std::move(options)), clock_(clock) {}

  MonoTime Now() const { return clock_.Now(); }
  // Of a call that came at `begin`. `peer` is a connection: address and port.
  void OnReset(const std::string& peer, MonoTime begin);
  // Whether there is anything that Check could refuse.
  bool is_empty() const { return is_empty_; }
  // RESOURCE_EXHAUSTED (too_many_resets) for a peer that has gone beyond the limit in a window that is not
  // over.
  Status Check(const std::string& peer) const;

 private:
  struct Peer {
    MonoTime window_begin = {};
    uint32_t resets = 0;
  };
  bool IsOver(const Peer& peer, MonoTime now) const { return now - peer.window_begin >= kWindow; }
  // Whether that made one too many.
  bool Count(const std::string& peer);

  const Options options_;
  const Clock& clock_;
  std::atomic<bool> is_empty_ = true;
  mutable std::mutex mutex_;
  std::map<std::string, Peer> peers_;  // GUARDED_BY(mutex_)
  MonoTime next_sweep_ = {};           // GUARDED_BY(mutex_)
};

}  // namespace terrace
