// Which requests the router works on, and which wait, whatever configuration they came under: what Admission
// keeps of all of them. The workers of each tier are a pool of places, one a sequence. While a pool has free
// ones, and the router, a request passes at once; else it waits in the pool's FairQueue, unless the first
// token it could hope for would come too late: then it is refused at once, as a late refusal helps nobody and
// a late answer costs as much as one in time.
//
// Several configurations may have requests here: after a reload the old one's run on beside the new one's.
// They share a pool where their tiers have one name, and its queue and what each tenant has been served. One
// of them is in charge: its limits are in force, and its word on how many places its pools have.
//
// Outlives the Admissions that use it. Thread-safe. Callbacks come on whichever thread made room, outside of
// all locks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "router/admission/fair_queue.h"
#include "router/admission/service_rate.h"
#include "router/admission/tenant_ledger.h"
#include "router/admission/token_pace.h"
#include "router/request/answer.h"
#include "router/request/request.h"

namespace terrace {

struct AdmissionOptions {
  size_t max_in_flight = 16384;  // requests admitted; more wait
  size_t max_queued = 4096;      // that wait for one pool; then the tenant with the most of them gives way
  Duration max_first_token = std::chrono::seconds(30);
};

Status RouterDraining();  // UNAVAILABLE (draining): the router is shutting down

class AdmissionBook {
 public:
  using PoolId = uint64_t;
  using EntryId = uint64_t;  // of a request that waits, then works

  // One configuration's pools, in the order of its tiers.
  struct User {
    uint64_t id = 0;
    std::vector<PoolId> pools = {};
  };
  // What has been admitted: to be given back with Release, the lease before.
  struct Admitted {
    EntryId id = 0;
    TenantLedger::Lease lease = {};
  };
  using OnAdmitted = std::function<void(StatusOr<Admitted>)>;

  // Both outlive the book.
  AdmissionBook(TenantLedger& ledger, const Clock& clock) : ledger_(ledger), clock_(clock) {}

  // The first user is in charge from the start, a later one from PutInCharge on; of pools that are new it is
  // in any case. Leave comes when none of its requests is here any more: of its pools the youngest of their
  // other users is in charge then.
  User Join(std::span<const std::string> tiers, const AdmissionOptions& options);
  void PutInCharge(const User& user, const AdmissionOptions& options);
  void Leave(const User& user);
  // As of Admission, for those of its pools that it is in charge of.
  void SetPlaces(const User& user, std::span<const uint32_t> places);

  // As of Admission.
  EntryId Enter(const Request& request, PoolId pool, OnAdmitted on_admitted);
  Status Peek(const Request& request, PoolId pool) const;
  Status PeekTenant(const Tenant& tenant) const;
  void Cancel(EntryId id);
  StatusOr<TenantLedger::Lease> EnterAside(const Request& request);
  void Expire();
  void Close();          // refuses what is new from now on
  void RefuseWaiting();  // what waits now (RouterDraining)

  // Of what has been admitted.
  void Release(EntryId id);
  void Move(EntryId id, PoolId from, PoolId to);
  void LeavePool(EntryId id, PoolId pool);
  void OnFirstToken(EntryId id);
  void Charge(EntryId id, uint64_t prompt_tokens, uint64_t completion_tokens);
  void OnTokens(PoolId pool, double seconds, uint32_t tokens);

  // As of Admission, for each of `pools`.
  std::vector<AnswerSpeed> SpeedsFor(const Request& request, std::span<const PoolId> pools) const;
  std::optional<double> seconds_per_token(PoolId pool) const;
  size_t queued(PoolId pool) const;
  double saturation(PoolId pool) const;
  size_t pools() const;

 private:
  struct Pool {
    std::string tier;
    std::set<uint64_t> users = {};  // by id
    uint64_t in_charge = 0;         // one of them
    uint32_t places = 0;
    uint32_t taken = 0;
    FairQueue queue = {};
    ServiceRate rate = {};
    double answer_tokens = 128;                   // typical of an answer
    double first_token_seconds = 0;               // typical, from the ticket on
    std::optional<MonoTime> first_token_at = {};  // the last one
    TokenPace pace = {};
  };
  struct Waiter {
    PoolId pool = 0;
    TenantPtr tenant = {};
    uint32_t sequences = 1;
    uint64_t tokens = 0;
    MonoTime deadline = {};
    TenantLedger::Lease lease = {};
    OnAdmitted on_admitted = {};
  };
  struct Held {  // by a ticket
    PoolId first_pool = 0;
    TenantPtr tenant = {};
    uint32_t sequences = 1;
    uint64_t tokens = 0;
    MonoTime admitted = {};
    bool has_first_token = false;
    std::map<PoolId, uint32_t> places = {};
  };
  // All with mutex_ held.
  PoolId FindOrAdd(const std::string& tier, uint64_t user);
  bool HasRoom(const Pool& pool) const {
    return held_.size() < options_.max_in_flight && (pool.places == 0 || pool.taken < pool.places);
  }
  bool Passes(const Pool& pool) const { return HasRoom(pool) && pool.queue.size() == 0; }
  Status CheckEnter(const Request& request, const Pool& pool, MonoTime now) const;
  std::optional<double> ExpectedWait(const Request& request, const Pool& pool, MonoTime now) const;
  Admitted Admit(EntryId id, Waiter& waiter, MonoTime now);
  void Pump(Pool& pool, MonoTime now);
  void PumpAll(MonoTime now);
  void GiveUp(EntryId id, Status status);
  void TakeBack(Pool& pool, uint32_t places);

  void CallReady();  // without mutex_

  TenantLedger& ledger_;
  const Clock& clock_;
  mutable std::mutex mutex_;
  AdmissionOptions options_;                 // GUARDED_BY(mutex_): of who is in charge
  std::map<PoolId, Pool> pools_;             // GUARDED_BY(mutex_)
  std::map<EntryId, Waiter> waiters_;        // GUARDED_BY(mutex_)
  std::map<EntryId, Held> held_;             // GUARDED_BY(mutex_)
  std::deque<std::function<void()>> ready_;  // GUARDED_BY(mutex_): callbacks to be made
  EntryId next_id_ = 0;                      // GUARDED_BY(mutex_)
  PoolId next_pool_id_ = 0;                  // GUARDED_BY(mutex_)
  uint64_t next_user_ = 0;                   // GUARDED_BY(mutex_)
  PoolId pumped_first_ = 0;                  // GUARDED_BY(mutex_): by PumpAll, the last time
  bool is_closed_ = false;                   // GUARDED_BY(mutex_)
};

}  // namespace terrace
