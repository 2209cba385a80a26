// Requests that take workers down. An answer whose worker is lost goes on at another one, so a request that
// kills whatever it runs on would go through the whole fleet. The second worker that is lost at one place of
// an answer is the last one: the request ends, and is refused for a while when its tenant sends it again. The
// first one may have been lost under an earlier request for the same tokens, or a shadow of it.
//
// What merely ran beside it is not to blame, and is told from it by keeping suspects apart. A suspect is what
// was at a worker's death and has not got further since:
//
//  - A prime suspect is one of which no token has come: its prompt may be what kills. It is tried only where
//    no other suspect runs, and none is put beside it. (Whether its worker had begun with it does not matter
//    here: a dying worker may not have sent that any more.)
//  - The others, answers that had begun and whose clients wait for the next token, go on at once wherever no
//    prime suspect is tried, and each at a worker of its own as far as there are enough.
//
// So who dies with a prime suspect was not at the first death, or has got further since. Suspects wait for
// such a worker for a while and then go anyway, and answers that had begun may have to share one. That may
// quarantine a bystander, never spare the culprit: the second death at one place is the last one whoever else
// was there.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <span>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "base/hash.h"
#include "base/status.h"
#include "router/cluster/cluster_view.h"
#include "text/tokenizer.h"

namespace terrace {

inline constexpr char kPoisonReason[] = "poison_request";
Status PoisonRequest();  // INTERNAL, kPoisonReason

// All workers compute the same bits, so what kills one kills the next at the same token. An answer that got
// further than that, by more than a dying worker computes and does not send, is innocent of the loss before.
inline constexpr uint32_t kMostUnsent = 16;

// The workers that were lost while one answer ran there. One thread at a time.
class WorkerLosses {
 public:
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

// A worker's death, as one attempt that was there has it: at one of the answer's tokens [first, last],
// counted from 0.
struct WorkerDeath {
  uint32_t first = 0, last = kMostUnsent;
  uint64_t boarded = 0;    // Quarantine::deaths when the attempt began
  bool had_begun = false;  // the worker, with the attempt

  // `come` tokens of the answer had come, and up to `drafted` of them the worker might compute at once.
  void SetPlace(size_t come, size_t drafted) {
    first = static_cast<uint32_t>(come);
    last = static_cast<uint32_t>(std::max(come, drafted)) + kMostUnsent;
  }
  bool MayBeAt(const WorkerDeath& other) const { return first <= other.last && other.first <= last; }
};

// Fingerprints of requests that are refused, and of suspects with where they run. Of either the latest kMost
// are kept, each for kTime. Thread-safe.
class Quarantine {
 public:
  static constexpr size_t kMost = 1024;
  static constexpr Duration kTime = std::chrono::minutes(10);

  explicit Quarantine(const Clock& clock) : clock_(clock) {}  // `clock` outlives it

  bool is_empty() const;  // nobody is refused or suspected
  void Add(const Hash128& request);
  bool Has(const Hash128& request);

  uint64_t deaths() const { return deaths_; }  // so far
  // The request is a suspect from now on. Or a worker was lost under it before the attempt began, perhaps at
  // the same token, and one of the two had begun with it: true, and it is in quarantine.
  bool OnDeath(const Hash128& request, const WorkerDeath& death);
  bool IsSuspect(const Hash128& request);

  // A suspect's attempt at one replica, as long as it is one: a lease. Empty: of who is none. Movable; one
  // thread at a time. The quarantine outlives it.
  class Trial {
   public:
    Trial() = default;
    Trial(Trial&& other) noexcept { *this = std::move(other); }
    Trial& operator=(Trial&& other) noexcept {
      std::swap(owner_, other.owner_);
      std::swap(request_, other.request_);
      std::swap(id_, other.id_);
      std::swap(boarded_, other.boarded_);
      std::swap(last_, other.last_);
      return *this;
    }
    ~Trial() { End(); }

    // So many tokens of its answer have come. Behind where the worker died, it is innocent of that.
    void OnTokens(size_t tokens) {
      if (owner_ != nullptr && tokens > last_) Acquit(tokens);
    }
    void OnAnswered() {  // to its end
      if (owner_ != nullptr) Acquit(std::numeric_limits<size_t>::max());
    }
    void End();  // the attempt is over. Idempotent

   private:
    friend class Quarantine;
    void Acquit(size_t tokens);
    Quarantine* owner_ = nullptr;
    Hash128 request_ = {};
    uint64_t id_ = 0, boarded_ = 0;
    uint32_t last_ = 0;  // of the death
  };
  // What an attempt of a suspect has to know before it goes anywhere.
  struct Others {
    std::set<ReplicaId> suspects = {};  // where others run
    std::set<ReplicaId> primes = {};    // prime ones of them
    std::set<ReplicaId> own = {};       // where it is tried, as a prime suspect, already
  };
  // One attempt at a time holds `turn` from OthersThan to Board.
  std::mutex& turn() { return turn_; }
  Others OthersThan(const Hash128& request) const;
  Trial Board(const Hash128& request, bool is_prime, ReplicaId replica);

 private:
  struct Refused {
    Hash128 request = {};
    MonoTime until = {};
  };
  struct Suspect {
    Hash128 request = {};
    MonoTime until = {};
    WorkerDeath death = {};  // the latest one
    uint64_t number = 0;     // of it, counted from 1
  };
  struct Running {
    Hash128 request = {};
    ReplicaId replica = 0;
    bool is_prime = false;
  };
  // All with mutex_ held.
  void Expire();
  Suspect* Find(const Hash128& request);  // null: it is none
  void Clear(const Hash128& request);
  void AddRefused(const Hash128& request);

  const Clock& clock_;
  std::mutex turn_;  // taken before mutex_
  std::atomic<uint64_t> deaths_ = 0;
  mutable std::mutex mutex_;
  std::deque<Refused> refused_;          // GUARDED_BY(mutex_); oldest first
  std::deque<Suspect> suspects_;         // GUARDED_BY(mutex_); oldest first
  std::map<uint64_t, Running> running_;  // GUARDED_BY(mutex_): trials
  uint64_t last_trial_ = 0;              // GUARDED_BY(mutex_)
};

}  // namespace terrace
