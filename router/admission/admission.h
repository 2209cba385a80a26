// Which requests of one configuration the router works on, and which have to wait or go away: an
// AdmissionBook's, seen with the tiers of one configuration as pools 0, 1, ... A reload makes a second one on
// the same book.
//
// A Ticket is a lease of one request: its end gives everything back. A pool counts this router's sequences
// alone; where several routers share workers, the workers' own queues even out the rest.
//
// Thread-safe; outlives its tickets. Callbacks come on whichever thread made room, outside of all locks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "router/admission/admission_book.h"
#include "router/admission/tenant_ledger.h"
#include "router/request/answer.h"
#include "router/request/request.h"

namespace terrace {

class Admission {
 public:
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Ticket&& other) noexcept { *this = std::move(other); }
    Ticket& operator=(Ticket&& other) noexcept {
      std::swap(owner_, other.owner_);
      std::swap(admitted_, other.admitted_);
      return *this;
    }
    ~Ticket() {
      if (owner_ == nullptr) return;
      { const TenantLedger::Lease given_back = std::move(admitted_.lease); }
      owner_->Release(admitted_.id);  // last: the owner may then be gone
    }

    // Thread-safe, until the ticket ends. One of the request's sequences goes on in another pool, or is over.
    void Move(size_t from_pool, size_t to_pool) const {
      if (owner_ != nullptr)
        owner_->book_.Move(admitted_.id, owner_->PoolAt(from_pool), owner_->PoolAt(to_pool));
    }
    void Leave(size_t pool) const {
      if (owner_ != nullptr) owner_->book_.LeavePool(admitted_.id, owner_->PoolAt(pool));
    }
    // A worker of the pool that the request began in has said its first token. The first call counts.
    void OnFirstToken() const {
      if (owner_ != nullptr) owner_->book_.OnFirstToken(admitted_.id);
    }
    // What the request cost, prompt and answers; before the ticket's end, by its holder.
    void Charge(uint64_t prompt_tokens, uint64_t completion_tokens) {
      if (owner_ == nullptr) return;
      owner_->book_.Charge(admitted_.id, prompt_tokens, completion_tokens);
      admitted_.lease.Charge(prompt_tokens + completion_tokens);
    }

   private:
    friend class Admission;
    Ticket(Admission* owner, AdmissionBook::Admitted admitted)
        : owner_(owner), admitted_(std::move(admitted)) {}
    Admission* owner_ = nullptr;  // outlives the ticket
    AdmissionBook::Admitted admitted_;
  };

  using OnAdmitted = std::function<void(StatusOr<Ticket>)>;
  using WaitId = AdmissionBook::EntryId;

  // `tiers` are the names of its pools: all users of the book share what has one name. `book` outlives it.
  Admission(const AdmissionOptions& options, std::span<const std::string> tiers, AdmissionBook& book);
  ~Admission();

  // Its options, and what it says of places, count from now on. Until then they do only for the book's first,
  // and of pools that no other has.
  void TakeCharge() { book_.PutInCharge(user_, options_); }

  // Calls `on_admitted` exactly once, perhaps before it returns, with a ticket for the request's draws() in
  // `pool`, or with an error: RESOURCE_EXHAUSTED (rate_limit_exceeded: the tenant's limit; overloaded: the
  // cluster's), UNAVAILABLE (draining), DEADLINE_EXCEEDED, or CANCELLED after Cancel.
  WaitId Enter(const Request& request, size_t pool, OnAdmitted on_admitted);
  // What Enter would refuse it with now, before more is done for the request; it may still change its mind.
  Status Peek(const Request& request, size_t pool) const { return book_.Peek(request, PoolAt(pool)); }
  // Of that, what is the same for every pool: the tenant's limits, and that the router shuts down.
  Status PeekTenant(const Tenant& tenant) const { return book_.PeekTenant(tenant); }
  void Cancel(WaitId id) { book_.Cancel(id); }  // of what waits; nothing otherwise
  // A request that no worker is asked for: it takes no place, and counts for its tenant while the lease
  // lives.
  StatusOr<TenantLedger::Lease> EnterAside(const Request& request) { return book_.EnterAside(request); }

  // How many sequences each pool's workers take; 0: none is known, and requests pass, to find that out.
  void SetPlaces(std::span<const uint32_t> places) { book_.SetPlaces(user_, places); }
  // Refuses what has waited for too long, whoever's it is; to be called a few times a second.
  void Expire() { book_.Expire(); }

  // So many tokens, at least one, of an answer of the pool's workers came in so many seconds.
  void OnTokens(size_t pool, double seconds, uint32_t tokens) {
    book_.OnTokens(PoolAt(pool), seconds, tokens);
  }
  // Of each pool, for a request that enters now.
  std::vector<AnswerSpeed> SpeedsFor(const Request& request) const {
    return book_.SpeedsFor(request, user_.pools);
  }
  // Smoothed; absent: none came lately.
  std::optional<double> seconds_per_token(size_t pool) const { return book_.seconds_per_token(PoolAt(pool)); }

  size_t in_flight() const { return in_flight_; }  // its own, admitted and waiting
  // All that wait; places taken, of all, 0 when none is known.
  size_t queued(size_t pool) const { return book_.queued(PoolAt(pool)); }
  double saturation(size_t pool) const { return book_.saturation(PoolAt(pool)); }

 private:
  AdmissionBook::PoolId PoolAt(size_t index) const { return user_.pools[index]; }
  void Release(WaitId id);

  const AdmissionOptions options_;
  AdmissionBook& book_;
  const AdmissionBook::User user_;
  std::atomic<size_t> in_flight_ = 0;
};

}  // namespace terrace
