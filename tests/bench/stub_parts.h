// What a stub worker is made of, but for gRPC: a clock that calls back, the places of its batch, and a prefix
// cache that keeps the first blocks it sees. Each is thread-safe.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "base/clock.h"
#include "text/block_key.h"
#include "worker/kv/prefix_journal.h"

namespace terrace {

// Calls back at given times, on a thread of its own, and `on_pause` whenever all that was due has been
// called, or 1 ms after the first call since the last time. What was not due when it dies is dropped.
class Alarms {
 public:
  explicit Alarms(std::function<void()> on_pause)
      : on_pause_(std::move(on_pause)), thread_([this](const std::stop_token& stop) { Run(stop); }) {}
  void At(MonoTime when, std::function<void()> call);

 private:
  void Run(const std::stop_token& stop);

  const std::function<void()> on_pause_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::multimap<MonoTime, std::function<void()>> calls_;  // GUARDED_BY(mutex_)
  std::jthread thread_;                                   // last: it uses the others
};

// Who runs and who waits for a place, first come, first served.
class Places {
 public:
  Places(uint32_t places, uint32_t inbox) : places_(places), inbox_(inbox) {}

  // Calls `begin` when there is a place, perhaps before this returns. False when too many wait already.
  bool Enter(const void* who, uint32_t prompt_tokens, std::function<void()> begin);
  // Gives a place back; whoever waits longest begins, before this returns.
  void Leave();
  // False when `who` does not wait any more, or never did.
  bool LeaveQueue(const void* who);

  struct Load {
    uint32_t running = 0, waiting = 0;
    uint64_t waiting_prompt_tokens = 0;
  };
  Load load() const;

 private:
  struct Waiting {
    const void* who;
    uint32_t prompt_tokens;
    std::function<void()> begin;
  };

  const uint32_t places_, inbox_;
  mutable std::mutex mutex_;
  Load load_;                    // GUARDED_BY(mutex_)
  std::deque<Waiting> waiting_;  // GUARDED_BY(mutex_)
};

// Which blocks of prompts are cached: the first `blocks` that come. Nothing is evicted, so that looking a
// prompt up ends at its first new block once the cache is full.
class StubCache {
 public:
  static constexpr uint32_t kBlockTokens = 16;

  StubCache(BlockKeyScope scope, uint32_t blocks) : scope_(std::move(scope)), blocks_(blocks) {}

  // How many of the prompt's first tokens are cached. From now on all of its whole blocks are, as far as they
  // fit.
  uint32_t Use(const std::string& salt, std::span<const int32_t> prompt);
  const PrefixJournal& journal() const { return journal_; }
  size_t size() const;

 private:
  const BlockKeyScope scope_;
  const uint32_t blocks_;
  mutable std::mutex mutex_;
  absl::flat_hash_set<uint64_t> held_;  // GUARDED_BY(mutex_): ShortKeys
  PrefixJournal journal_;
};

}  // namespace terrace
