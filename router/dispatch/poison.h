// Requests that take workers down. An answer whose worker is lost goes on at another one, so a request that
// kills whatever it runs on would go through the whole fleet. The second worker that is lost at one place of
// an answer is the last one: the request ends, and is refused for a while when its tenant sends it again. The
// first one may have been lost under an earlier request for the same tokens, or a shadow of it.
//
// Two workers may also be lost under one answer by chance, one soon after the other. Where the place of both
// is the same as far as is known (kUsuallyUnsent) the request is to blame. Where it may only be the same
// (kMostUnsent) nobody knows: the request ends too, as no third worker must be lost to it, but with
// worker_lost, and may come again; it is to blame if it then loses another there. And whatever the places, an
// answer that has lost kMostLost workers ends.
//
// A request that hangs its worker takes it down as much as one that kills it. But a worker that is silent may
// be behind a network that is cut, and be as well as ever. So it is lost to a request only
//
//  - when it had begun with the attempt: what is sent to a worker that cannot be reached any more never
//    begins, and so a cut that takes many workers at once costs an answer the first of them alone;
//  - as long as that process is not back, by the time that the next worker is lost: then it hung in nothing.
//
// And what hangs one hangs the next: a worker that is lost next without having begun went with the network,
// or the machine, that the silent one was behind.
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
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
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

// All workers compute the same bits, so what kills one kills the next at the same token. A worker sends what
// a step has given before it computes the next one, so that a dying one has computed a token or two that it
// did not send; more where its message before was still being written, or where its steps give several. An
// answer that got further than kMostUnsent tokens is innocent of the loss before.
inline constexpr uint32_t kUsuallyUnsent = 2, kMostUnsent = 16;

inline constexpr uint32_t kMostLost = 4;  // workers, by one answer

// What the loss of a worker says of a request that ran there.
enum class Blame : uint8_t {
  kNone,     // it may be tried at another one
  kUnclear,  // that may be its doing or not: it is tried no further
  kRequest,
};

// Whether a process that was silent gives signs of life again.
using IsBack = std::function<bool(const std::string& process)>;

// A worker's death, as one attempt that was there has it: at one of the answer's tokens [first, last],
// counted from 0, and most likely at one of [first, likely_last].
struct WorkerDeath {
  uint32_t first = 0, likely_last = kUsuallyUnsent, last = kMostUnsent;
  uint64_t boarded = 0;     // Quarantine::deaths when the attempt began
  bool had_begun = false;   // the worker, with the attempt
  std::string silent = {};  // the process that gave no sign of life any more; "": it is known to be gone

  // `come` tokens of the answer had come, and up to `drafted` of them the worker might compute at once.
  void SetPlace(size_t come, size_t drafted) {
    const auto known = static_cast<uint32_t>(std::max(come, drafted));
    first = static_cast<uint32_t>(come);
    likely_last = known + kUsuallyUnsent;
    last = known + kMostUnsent;
  }
  bool IsAt(const WorkerDeath& other) const {
    return first <= other.likely_last && other.first <= likely_last;
  }
  bool MayBeAt(const WorkerDeath& other) const { return first <= other.last && other.first <= last; }
  bool WasNone(const IsBack& is_back) const { return !silent.empty() && is_back(silent); }
  // So that the next worker that is lost here need not have.
  bool had_begun_and_died() const { return had_begun && silent.empty(); }
};

// The workers that were lost while one answer ran there. One thread at a time.
class WorkerLosses {
 public:
  void OnToken() { ++tokens_since_; }  // that was not drafted: of those a worker computes many at once
  // Unclear: the second one about here, the last that an answer may lose, or the second one here where others
  // may have been the cause, as neither had begun with the request, or only one that was silent.
  Blame OnLoss(const WorkerDeath& death, const IsBack& is_back) {
    if (last_.has_value() && last_->WasNone(is_back)) {
      last_.reset();
      --lost_;
    }
    const bool is_near = last_.has_value() && tokens_since_ <= kMostUnsent;
    const bool is_here = is_near && tokens_since_ <= kUsuallyUnsent;
    const bool had_begun = death.had_begun || (is_near && last_->had_begun_and_died());
    last_ = death;
    last_->had_begun = had_begun;
    tokens_since_ = 0;
    ++lost_;
    if (is_here && had_begun) return Blame::kRequest;
    return is_near || lost_ >= kMostLost ? Blame::kUnclear : Blame::kNone;
  }

 private:
  std::optional<WorkerDeath> last_;
  uint32_t tokens_since_ = 0;
  uint32_t lost_ = 0;
};

// A tenant's prompt for a model, by its digest: whichever tier serves it, also when a reload gives that
// another name. It is not the prompt alone, as a place in an answer is one of a model's answer: what another
// model got through says nothing of this one, and what it died at is elsewhere.
Hash128 RequestFingerprint(std::string_view model_digest, std::string_view tenant,
                           std::span<const TokenId> prompt);

// Fingerprints of requests that are refused, and of suspects with where they run. Of either the latest kMost
// are kept, each for kTime. The router's, so that it outlives a reload of the configuration. Thread-safe.
class Quarantine {
 public:
  static constexpr size_t kMost = 1024;
  static constexpr Duration kTime = std::chrono::minutes(10);

  explicit Quarantine(const Clock& clock) : clock_(clock) {}  // `clock` outlives it

  bool is_empty() const;  // nobody is refused or suspected
  void Add(const Hash128& request);
  bool Has(const Hash128& request);

  uint64_t deaths() const { return deaths_; }  // so far
  // The request is a suspect from now on. Or a worker was lost under it before the attempt began, and one of
  // the two had begun with it: at the same token as far as is known, or the third perhaps at that token, and
  // it is in quarantine (kRequest); or the second perhaps at that token (kUnclear). `is_back` is called with
  // a lock held.
  Blame OnDeath(const Hash128& request, const WorkerDeath& death, const IsBack& is_back);
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
    WorkerDeath death = {};    // the latest one
    uint64_t number = 0;       // of it, counted from 1
    bool is_doubtful = false;  // the death before may have been there too
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
