// Requests that take workers down. An answer whose worker is lost goes on at another one, so a request that
// kills whatever it runs on would go through the whole fleet. The second worker that is lost at one place of
// an answer is the last one: the request ends, and is refused for a while when its tenant sends it again.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <string_view>

#include "base/clock.h"
#include "base/hash.h"
#include "base/status.h"
#include "text/tokenizer.h"

namespace terrace {

inline constexpr char kPoisonReason[] = "poison_request";
Status PoisonRequest();  // INTERNAL, kPoisonReason

// The workers that were lost while one answer ran there. One thread at a time.
class WorkerLosses {
 public:
  // All workers compute the same bits, so what kills one kills the next at the same token. An answer that got
  // further than that, by more than a dying worker computes and does not send, is innocent of the loss
  // before.
  static constexpr uint32_t kMostUnsent = 16;

  enum class Blame : uint8_t {
    kNone,
    kUnclear,  // the second one, but neither had begun with the request: others may have been the cause
    kRequest,
  };

  void OnToken() { ++tokens_since_; }  // that was not drafted: of those a worker computes many at once
  // `had_begun`: the worker, with the request.
  Blame OnLoss(bool had_begun) {
    const bool is_again = has_lost_ && tokens_since_ <= kMostUnsent;
    had_begun_ = had_begun || (is_again && had_begun_);
    has_lost_ = true;
    tokens_since_ = 0;
    if (!is_again) return Blame::kNone;
    return had_begun_ ? Blame::kRequest : Blame::kUnclear;
  }

 private:
  bool has_lost_ = false;
  bool had_begun_ = false;  // one of those at this place
  uint32_t tokens_since_ = 0;
};

// A tenant's prompt at a tier.
Hash128 RequestFingerprint(std::string_view tier, std::string_view tenant, std::span<const TokenId> prompt);

// Fingerprints of requests that are refused, each for kTime and the latest kMost of them. Thread-safe.
class Quarantine {
 public:
  static constexpr size_t kMost = 1024;
  static constexpr Duration kTime = std::chrono::minutes(10);

  explicit Quarantine(const Clock& clock) : clock_(clock) {}  // `clock` outlives it

  void Add(const Hash128& request);
  bool Has(const Hash128& request);
  bool is_empty() const;

 private:
  struct Entry {
    Hash128 request = {};
    MonoTime until = {};
  };
  const Clock& clock_;
  mutable std::mutex mutex_;
  std::deque<Entry> entries_;  // GUARDED_BY(mutex_); oldest first
};

}  // namespace terrace
