// Which requests the router works on, and which have to wait or go away. The workers of each tier are a pool
// of places, one a sequence. While a pool has free ones, and the router, a request passes at once; else it
// waits in the pool's FairQueue, unless the first token it could hope for would come too late: then it is
// refused at once, as a late refusal helps nobody and a late answer costs as much as one in time.
//
// A Ticket is a lease of one request: its end gives everything back. A pool counts this router's sequences
// alone; where several routers share workers, the workers' own queues even out the rest.
//
// Thread-safe; outlives its tickets. Callbacks come on whichever thread made room, outside of all locks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "router/admission/fair_queue.h"
#include "router/admission/service_rate.h"
#include "router/admission/tenant_ledger.h"
#include "router/request/request.h"

namespace terrace {

struct AdmissionOptions {
  size_t max_in_flight = 16384;  // requests admitted; more wait
  size_t max_queued = 4096;      // that wait for one pool; then the tenant with the most of them gives way
  Duration max_first_token = std::chrono::seconds(30);
};

class Admission {
 public:
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Ticket&& other) noexcept { *this = std::move(other); }
    Ticket& operator=(Ticket&& other) noexcept {
      std::swap(owner_, other.owner_);
      std::swap(id_, other.id_);
      std::swap(lease_, other.lease_);
      return *this;
    }
    ~Ticket() {
      if (owner_ == nullptr) return;
      { const TenantLedger::Lease given_back = std::move(lease_); }
      owner_->Release(id_);  // last: the owner, and the ledger, may then be gone
    }

    // Thread-safe, until the ticket ends. One of the request's sequences goes on in another pool, or is over.
    void Move(size_t from_pool, size_t to_pool) const {
      if (owner_ != nullptr) owner_->Move(id_, from_pool, to_pool);
    }
    void Leave(size_t pool) const {
      if (owner_ != nullptr) owner_->Leave(id_, pool);
    }
    // A worker of the pool that the request began in has said its first token. The first call counts.
    void OnFirstToken() const {
      if (owner_ != nullptr) owner_->OnFirstToken(id_);
    }
    // What the request cost, prompt and answers; before the ticket's end, by its holder.
    void Charge(uint64_t prompt_tokens, uint64_t completion_tokens) {
      if (owner_ == nullptr) return;
      owner_->Charge(id_, prompt_tokens, completion_tokens);
      lease_.Charge(prompt_tokens + completion_tokens);
    }

   private:
    friend class Admission;
    Ticket(Admission* owner, uint64_t id, TenantLedger::Lease lease)
        : owner_(owner), id_(id), lease_(std::move(lease)) {}
    Admission* owner_ = nullptr;  // outlives the ticket
    uint64_t id_ = 0;
    TenantLedger::Lease lease_;
  };

  using OnAdmitted = std::function<void(StatusOr<Ticket>)>;
  using WaitId = uint64_t;

  // `pools` as many as there are tiers. `ledger` and `clock` outlive the admission.
  Admission(const AdmissionOptions& options, size_t pools, TenantLedger& ledger, const Clock& clock)
      : options_(options), ledger_(ledger), clock_(clock), pools_(pools) {}

  // Calls `on_admitted` exactly once, perhaps before it returns, with a ticket for the request's draws() in
  // `pool`, or with an error: RESOURCE_EXHAUSTED (rate_limit_exceeded: the tenant's limit; overloaded: the
  // cluster's), UNAVAILABLE (draining), DEADLINE_EXCEEDED, or CANCELLED after Cancel.
  WaitId Enter(const Request& request, size_t pool, OnAdmitted on_admitted);
  // What Enter would refuse it with now, before more is done for the request; it may still change its mind.
  Status Peek(const Request& request, size_t pool) const;
  void Cancel(WaitId id);  // of what waits; nothing otherwise
  // A request that no worker is asked for: it takes no place, and counts for its tenant while the lease
  // lives.
  StatusOr<TenantLedger::Lease> EnterAside(const Request& request);

  // How many sequences each pool's workers take; 0: none is known, and requests pass, to find that out.
  void SetPlaces(std::span<const uint32_t> places);
  // Refuses what has waited for too long; to be called a few times a second.
  void Expire();
  // Refuses everything new from now on; requests in flight are not touched.
  void Close();

  size_t in_flight() const { return in_flight_; }  // admitted and waiting
  size_t queued(size_t pool) const;
  double saturation(size_t pool) const;  // places taken, of all; 0 when none is known

 private:
  struct Pool {
    uint32_t places = 0;
    uint32_t taken = 0;
    FairQueue queue = {};
    ServiceRate rate = {};
    double answer_tokens = 128;      // typical of an answer
    double first_token_seconds = 0;  // typical, from the ticket on
  };
  struct Waiter {
    size_t pool = 0;
    TenantPtr tenant = {};
    uint32_t sequences = 1;
    uint64_t tokens = 0;
    MonoTime deadline = {};
    TenantLedger::Lease lease = {};
    OnAdmitted on_admitted = {};
  };
  struct Held {  // by a ticket
    size_t first_pool = 0;
    TenantPtr tenant = {};
    uint32_t sequences = 1;
    uint64_t tokens = 0;
    MonoTime admitted = {};
    bool has_first_token = false;
    std::map<size_t, uint32_t> places = {};  // by pool
  };
  // All with mutex_ held.
  bool HasRoom(const Pool& pool) const {
    return held_.size() < options_.max_in_flight && (pool.places == 0 || pool.taken < pool.places);
  }
  bool Passes(const Pool& pool) const { return HasRoom(pool) && pool.queue.size() == 0; }
  Status CheckEnter(const Request& request, const Pool& pool, MonoTime now) const;
  Ticket Admit(uint64_t id, Waiter& waiter, MonoTime now);
  void Pump(Pool& pool, MonoTime now);
  void PumpAll(MonoTime now);
  void GiveUp(uint64_t id, Status status);
  void TakeBack(Pool& pool, uint32_t places);

  void Release(uint64_t id);
  void Move(uint64_t id, size_t from, size_t to);
  void Leave(uint64_t id, size_t pool);
  void OnFirstToken(uint64_t id);
  void Charge(uint64_t id, uint64_t prompt_tokens, uint64_t completion_tokens);
  void CallReady();  // without mutex_

  const AdmissionOptions options_;
  TenantLedger& ledger_;
  const Clock& clock_;
  std::atomic<size_t> in_flight_ = 0;
  mutable std::mutex mutex_;
  std::vector<Pool> pools_;                  // GUARDED_BY(mutex_)
  std::map<uint64_t, Waiter> waiters_;       // GUARDED_BY(mutex_)
  std::map<uint64_t, Held> held_;            // GUARDED_BY(mutex_)
  std::deque<std::function<void()>> ready_;  // GUARDED_BY(mutex_): callbacks to be made
  uint64_t next_id_ = 0;                     // GUARDED_BY(mutex_)
  size_t next_pool_ = 0;                     // GUARDED_BY(mutex_): that PumpAll begins with
  bool is_closed_ = false;                   // GUARDED_BY(mutex_)
};

}  // namespace terrace
