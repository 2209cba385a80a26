#include "router/admission/tenant_ledger.h"

#include <algorithm>
#include <cmath>

#include "base/retry_after.h"

namespace terrace {
namespace {

constexpr double kMinute = 60;
constexpr double kPlaceRetrySeconds = 1;  // when a place will be free is not known
constexpr double kMaxShown = 1e15;
constexpr double kRounding = 1e-9;  // that refilling leaves

// Of one minute's worth at once; a new limit begins with a full bucket.
void SetLimit(double per_minute, MonoTime now, double& current, std::optional<TokenBucket>& bucket) {
  if (per_minute == current) return;
  current = per_minute;
  bucket.reset();
  if (per_minute > 0) bucket.emplace(per_minute / kMinute, per_minute, now);
}

// In whole ones. A full bucket lets at least one pass, however small it is.
std::optional<RateLimit> LimitOf(std::optional<TokenBucket>& bucket, MonoTime now) {
  if (!bucket.has_value()) return {};
  const auto whole = [](double amount) { return static_cast<uint64_t>(std::clamp(amount, 0.0, kMaxShown)); };
  const double reset_seconds = bucket->SecondsUntil(bucket->capacity(), now);
  const uint64_t limit = whole(std::ceil(bucket->capacity()));
  return RateLimit{.limit = limit,
                   .remaining = reset_seconds > 0 ? whole(std::floor(bucket->Level(now) + kRounding)) : limit,
                   .reset_seconds = reset_seconds};
}

template <typename... Text>
Status LimitReached(const Tenant& tenant, double retry_seconds, const Text&... text) {
  return WithRetryAfter(
      WithReason(ResourceExhausted("tenant ", tenant.name, " has reached its limit of ", text...),
                 "rate_limit_exceeded"),
      retry_seconds);
}

}  // namespace

void TenantLedger::Lease::Charge(uint64_t tokens) {
  if (owner_ != nullptr)
    owner_->Take(*tenant_, static_cast<double>(tokens) - static_cast<double>(taken_tokens_));
}

StatusOr<TenantLedger::Lease> TenantLedger::Enter(const TenantPtr& tenant, uint64_t tokens) {
  std::lock_guard lock(mutex_);
  const MonoTime now = clock_.Now();
  Account& account = accounts_[tenant->name];
  SetLimits(*tenant, now, account);
  RETURN_IF_ERROR(Check(*tenant, account, now));
  if (account.requests) account.requests->Take(1, now);
  if (account.tokens) account.tokens->Take(static_cast<double>(tokens), now);
  ++account.in_flight;
  return Lease(this, tenant, tokens);
}

Status TenantLedger::Peek(const Tenant& tenant) const {
  std::lock_guard lock(mutex_);
  const MonoTime now = clock_.Now();
  Account account = Seen(tenant, now);
  return Check(tenant, account, now);
}

Status TenantLedger::Check(const Tenant& tenant, Account& account, MonoTime now) {
  if (tenant.max_in_flight > 0 && account.in_flight >= tenant.max_in_flight) {
    return LimitReached(tenant, kPlaceRetrySeconds, tenant.max_in_flight, " requests at once");
  }
  if (const double wait = account.requests ? account.requests->SecondsUntil(1, now) : 0; wait > 0) {
    return LimitReached(tenant, wait, tenant.requests_per_minute, " requests per minute");
  }
  // Any level above zero will do: what was taken too much has to be refilled first.
  if (const double wait = account.tokens ? account.tokens->SecondsUntil(1, now) : 0; wait > 0) {
    return LimitReached(tenant, wait, tenant.tokens_per_minute, " tokens per minute");
  }
  return {};
}

RateLimits TenantLedger::LimitsOf(const Tenant& tenant) const {
  if (tenant.requests_per_minute == 0 && tenant.tokens_per_minute == 0) return {};
  std::lock_guard lock(mutex_);
  const MonoTime now = clock_.Now();
  Account account = Seen(tenant, now);
  return {.requests = LimitOf(account.requests, now), .tokens = LimitOf(account.tokens, now)};
}

TenantLedger::Account TenantLedger::Seen(const Tenant& tenant, MonoTime now) const {
  const auto found = accounts_.find(tenant.name);
  Account account = found == accounts_.end() ? Account() : found->second;
  SetLimits(tenant, now, account);
  return account;
}

void TenantLedger::SetLimits(const Tenant& tenant, MonoTime now, Account& account) {
  SetLimit(tenant.requests_per_minute, now, account.requests_per_minute, account.requests);
  SetLimit(tenant.tokens_per_minute, now, account.tokens_per_minute, account.tokens);
}

void TenantLedger::Leave(const Tenant& tenant) {
  std::lock_guard lock(mutex_);
  --accounts_[tenant.name].in_flight;
}

void TenantLedger::Take(const Tenant& tenant, double tokens) {
  std::lock_guard lock(mutex_);
  Account& account = accounts_[tenant.name];
  if (account.tokens) account.tokens->Take(tokens, clock_.Now());
}

}  // namespace terrace
