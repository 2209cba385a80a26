// What every tenant uses now and has used of late, held against its limits. Tenants are known by name: a
// reloaded configuration goes on with what they have used. Thread-safe; outlives its leases.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/status.h"
#include "router/admission/token_bucket.h"
#include "router/request/tenant.h"

namespace terrace {

class TenantLedger {
 public:
  // One request's place among its tenant's. Its end gives the place back; what was Charged stays.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept
        : owner_(std::exchange(other.owner_, nullptr)),
          tenant_(std::move(other.tenant_)),
          taken_tokens_(other.taken_tokens_) {}
    Lease& operator=(Lease&& other) noexcept {
      std::swap(owner_, other.owner_);
      std::swap(tenant_, other.tenant_);
      std::swap(taken_tokens_, other.taken_tokens_);
      return *this;
    }
    ~Lease() {
      if (owner_ != nullptr) owner_->Leave(*tenant_);
    }
    // The request cost `tokens`: the difference to what was expected is taken or given back. Once.
    void Charge(uint64_t tokens);

   private:
    friend class TenantLedger;
    Lease(TenantLedger* owner, TenantPtr tenant, uint64_t tokens)
        : owner_(owner), tenant_(std::move(tenant)), taken_tokens_(tokens) {}
    TenantLedger* owner_ = nullptr;
    TenantPtr tenant_;
    uint64_t taken_tokens_ = 0;
  };

  explicit TenantLedger(const Clock& clock) : clock_(clock) {}

  // RESOURCE_EXHAUSTED (rate_limit_exceeded) with RetryAfter when a limit of the tenant is reached. `tokens`
  // is what the request is expected to cost.
  StatusOr<Lease> Enter(const TenantPtr& tenant, uint64_t tokens);
  // What Enter would say now, and what is left of the tenant's limits. Neither changes what is counted: a
  // request may ask in the name of limits that a reload has replaced.
  Status Peek(const Tenant& tenant) const;
  RateLimits LimitsOf(const Tenant& tenant) const;

 private:
  struct Account {
    uint32_t in_flight = 0;
    double requests_per_minute = 0, tokens_per_minute = 0;  // that the buckets are for
    std::optional<TokenBucket> requests, tokens;
  };
  // With mutex_ held: a copy, as Enter would find it.
  Account Seen(const Tenant& tenant, MonoTime now) const;
  static void SetLimits(const Tenant& tenant, MonoTime now, Account& account);
  static Status Check(const Tenant& tenant, Account& account, MonoTime now);

  void Leave(const Tenant& tenant);
  void Take(const Tenant& tenant, double tokens);

  const Clock& clock_;
  mutable std::mutex mutex_;
  std::map<std::string, Account> accounts_;  // GUARDED_BY(mutex_); by name: as many as are configured
};

}  // namespace terrace
