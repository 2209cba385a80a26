#include "router/admission/admission_book.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "base/retry_after.h"

namespace terrace {
namespace {

constexpr double kBytesPerToken = 4;     // of text, as a guess before it is tokenized
constexpr double kSmoothing = 1.0 / 16;  // weight of the newest observation
constexpr double kSafety = 0.8;          // of the limit, as far as waits are predicted
constexpr double kMaxRetrySeconds = 60;

size_t PromptTokensOf(const Request& request) {
  if (const auto* tokens = std::get_if<std::vector<TokenId>>(&request.input())) return tokens->size();
  return 1 + static_cast<size_t>(static_cast<double>(TextBytes(request)) / kBytesPerToken);
}

uint64_t ExpectedTokens(const Request& request, double typical_answer) {
  const double limit = request.max_tokens() == 0 ? typical_answer : request.max_tokens();
  const double answer = request.is_prompt_only() ? 0 : std::min(limit, typical_answer);
  return PromptTokensOf(request) + static_cast<uint64_t>(answer) * request.draws();
}

Status Overloaded(double retry_seconds, std::string_view why) {
  return WithRetryAfter(WithReason(ResourceExhausted("the cluster is overloaded: ", why), "overloaded"),
                        std::clamp(std::ceil(retry_seconds), 1.0, kMaxRetrySeconds));
}

Status TooMany() { return Overloaded(1, "too many requests wait"); }

Status TooLate() { return Overloaded(1, "the first token would come too late"); }

Status DeadlinePassed() {
  return WithReason(DeadlineExceeded("the request's deadline passed while it waited"), "deadline_exceeded");
}

void Smooth(double value, double& average) { average += kSmoothing * (value - average); }

// The book whose callbacks this thread is making: one that a callback's own end makes ready is made by the
// same loop, not from within.
thread_local const AdmissionBook* calling = nullptr;

}  // namespace

Status RouterDraining() { return WithReason(Unavailable("the router is shutting down"), "draining"); }

AdmissionBook::User AdmissionBook::Join(std::span<const std::string> tiers, const AdmissionOptions& options) {
  std::lock_guard lock(mutex_);
  User user{.id = ++next_user_};
  for (const std::string& tier : tiers) user.pools.push_back(FindOrAdd(tier, user.id));
  if (user.id == 1) options_ = options;
  return user;
}

AdmissionBook::PoolId AdmissionBook::FindOrAdd(const std::string& tier, uint64_t user) {
  const auto found = std::ranges::find_if(pools_, [&](const auto& each) { return each.second.tier == tier; });
  const PoolId id = found == pools_.end() ? ++next_pool_id_ : found->first;
  Pool& pool = pools_[id];
  if (pool.users.empty()) {
    pool.tier = tier;
    pool.in_charge = user;
  }
  pool.users.insert(user);
  return id;
}

void AdmissionBook::PutInCharge(const User& user, const AdmissionOptions& options) {
  {
    std::lock_guard lock(mutex_);
    options_ = options;
    for (const PoolId pool : user.pools) pools_.at(pool).in_charge = user.id;
    PumpAll(clock_.Now());
  }
  CallReady();
}

void AdmissionBook::Leave(const User& user) {
  std::lock_guard lock(mutex_);
  for (const PoolId id : user.pools) {
    Pool& pool = pools_.at(id);
    pool.users.erase(user.id);
    if (pool.users.empty()) {
      pools_.erase(id);
    } else if (pool.in_charge == user.id) {
      pool.in_charge = *pool.users.rbegin();
    }
  }
}

Status AdmissionBook::Peek(const Request& request, PoolId pool) const {
  std::lock_guard lock(mutex_);
  RETURN_IF_ERROR(CheckEnter(request, pools_.at(pool), clock_.Now()));
  return ledger_.Peek(*request.tenant());
}

Status AdmissionBook::PeekTenant(const Tenant& tenant) const {
  std::lock_guard lock(mutex_);
  return is_closed_ ? RouterDraining() : ledger_.Peek(tenant);
}

AdmissionBook::EntryId AdmissionBook::Enter(const Request& request, PoolId pool_id, OnAdmitted on_admitted) {
  EntryId id = 0;
  Status refused;
  std::optional<Admitted> admitted;
  {
    std::lock_guard lock(mutex_);
    Pool& pool = pools_.at(pool_id);
    const MonoTime now = clock_.Now();
    const uint64_t tokens = ExpectedTokens(request, pool.answer_tokens);
    refused = CheckEnter(request, pool, now);
    auto lease = refused.ok() ? ledger_.Enter(request.tenant(), tokens) : refused;
    refused = lease.status();
    if (refused.ok()) {
      id = ++next_id_;
      Waiter waiter{.pool = pool_id,
                    .tenant = request.tenant(),
                    .sequences = request.draws(),
                    .tokens = tokens,
                    .deadline = request.deadline(),
                    .lease = *std::move(lease)};
      const bool passes = Passes(pool);
      if (!passes && pool.queue.size() == 0) pool.rate.Restart();
      if (!passes && pool.queue.size() >= options_.max_queued) {
        const auto other = pool.queue.MakeRoom(waiter.tenant->name, waiter.tenant->weight);
        CHECK(other.has_value(), "CheckEnter has found one");
        GiveUp(other->id, TooMany());
      }
      pool.queue.Push({.id = id,
                       .tenant = waiter.tenant->name,
                       .weight = waiter.tenant->weight,
                       .priority = request.priority(),
                       .tokens = tokens,
                       .latest = std::min(request.arrival() + options_.max_first_token, request.deadline())});
      if (passes) {
        pool.queue.Pop();  // this one: it is charged like those that wait
        admitted = Admit(id, waiter, now);
      } else {
        waiter.on_admitted = std::move(on_admitted);
        waiters_.emplace(id, std::move(waiter));
      }
    }
  }
  if (admitted.has_value()) {
    on_admitted(*std::move(admitted));
  } else if (!refused.ok()) {
    on_admitted(refused);
  }
  CallReady();
  return id;
}

StatusOr<TenantLedger::Lease> AdmissionBook::EnterAside(const Request& request) {
  std::lock_guard lock(mutex_);
  if (is_closed_) return RouterDraining();
  return ledger_.Enter(request.tenant(), 0);
}

// Whether it makes sense for the request to pass or to wait.
Status AdmissionBook::CheckEnter(const Request& request, const Pool& pool, MonoTime now) const {
  if (is_closed_) return RouterDraining();
  if (Passes(pool)) return {};
  const Tenant& tenant = *request.tenant();
  const bool is_full = pool.queue.size() >= options_.max_queued;
  if (is_full && !pool.queue.CanMakeRoom(tenant.name, tenant.weight)) return TooMany();
  const std::optional<double> wait = ExpectedWait(request, pool, now);
  if (!wait.has_value() || pool.queue.size() == 0) return {};
  const double limit = Seconds(std::min<Duration>(options_.max_first_token, request.deadline() - now));
  const double late = *wait + pool.first_token_seconds - kSafety * limit;
  return late <= 0 ? Status() : Overloaded(late, "the first token would come too late");
}

// Seconds until a request that enters now has a place; absent while too little has been seen.
std::optional<double> AdmissionBook::ExpectedWait(const Request& request, const Pool& pool,
                                                  MonoTime now) const {
  if (pool.queue.size() == 0) return 0;
  const std::optional<double> rate = pool.rate.TokensPerSecond(now);
  if (!rate.has_value()) return std::nullopt;
  const Tenant& tenant = *request.tenant();
  return pool.queue.TokensAhead(tenant.name, tenant.weight, request.priority()) / *rate;
}

std::vector<AnswerSpeed> AdmissionBook::SpeedsFor(const Request& request,
                                                  std::span<const PoolId> pools) const {
  std::lock_guard lock(mutex_);
  const MonoTime now = clock_.Now();
  std::vector<AnswerSpeed> speeds;
  for (const PoolId id : pools) {
    const Pool& pool = pools_.at(id);
    AnswerSpeed& speed = speeds.emplace_back();
    speed.seconds_per_token = pool.pace.SecondsPerToken(now);
    const double wait = ExpectedWait(request, pool, now).value_or(0);
    const bool is_known = pool.first_token_at.has_value() && now - *pool.first_token_at < kSpeedRemembered;
    if (is_known || wait > 0) speed.first_token_seconds = wait + (is_known ? pool.first_token_seconds : 0);
  }
  return speeds;
}

std::optional<double> AdmissionBook::seconds_per_token(PoolId pool) const {
  std::lock_guard lock(mutex_);
  return pools_.at(pool).pace.SecondsPerToken(clock_.Now());
}

AdmissionBook::Admitted AdmissionBook::Admit(EntryId id, Waiter& waiter, MonoTime now) {
  pools_.at(waiter.pool).taken += waiter.sequences;
  held_[id] = {.first_pool = waiter.pool,
               .tenant = waiter.tenant,
               .sequences = waiter.sequences,
               .tokens = waiter.tokens,
               .admitted = now,
               .places = {{waiter.pool, waiter.sequences}}};
  return {.id = id, .lease = std::move(waiter.lease)};
}

void AdmissionBook::Pump(Pool& pool, MonoTime now) {
  while (HasRoom(pool)) {
    const auto next = pool.queue.Pop();
    if (!next.has_value()) return;
    const auto first_token =
        std::chrono::duration_cast<Duration>(std::chrono::duration<double>(pool.first_token_seconds));
    if (now + first_token > next->latest) {
      pool.queue.Charge(next->tenant, next->weight, -static_cast<double>(next->tokens));
      GiveUp(next->id,
             next->latest < now && waiters_.at(next->id).deadline < now ? DeadlinePassed() : TooLate());
      continue;
    }
    auto found = waiters_.extract(next->id);
    Waiter& waiter = found.mapped();
    ready_.push_back([admitted = std::make_shared<Admitted>(Admit(next->id, waiter, now)),
                      on_admitted = std::move(waiter.on_admitted)] { on_admitted(std::move(*admitted)); });
  }
}

// A different pool first each time: while max_in_flight binds, all of them are short of room.
void AdmissionBook::PumpAll(MonoTime now) {
  auto next = pools_.upper_bound(pumped_first_);
  if (next == pools_.end()) next = pools_.begin();
  if (next != pools_.end()) pumped_first_ = next->first;
  for (size_t left = pools_.size(); left > 0; --left) {
    Pump(next->second, now);
    if (++next == pools_.end()) next = pools_.begin();
  }
}

// Of one that is in no queue any more.
void AdmissionBook::GiveUp(EntryId id, Status status) {
  auto found = waiters_.extract(id);
  auto lease = std::make_shared<TenantLedger::Lease>(std::move(found.mapped().lease));
  lease->Charge(0);
  ready_.push_back([on_admitted = std::move(found.mapped().on_admitted), lease, status] {
    { const TenantLedger::Lease given_back = std::move(*lease); }
    on_admitted(status);
  });
}

void AdmissionBook::Cancel(EntryId id) {
  {
    std::lock_guard lock(mutex_);
    const auto found = waiters_.find(id);
    if (found == waiters_.end()) return;
    pools_.at(found->second.pool).queue.Erase(id);
    GiveUp(id, WithReason(Cancelled("the client is gone"), "client_closed"));
  }
  CallReady();
}

void AdmissionBook::SetPlaces(const User& user, std::span<const uint32_t> places) {
  {
    std::lock_guard lock(mutex_);
    const MonoTime now = clock_.Now();
    for (size_t i = 0; i < user.pools.size(); ++i) {
      Pool& pool = pools_.at(user.pools[i]);
      if (pool.in_charge == user.id) pool.places = places[i];
    }
    PumpAll(now);
  }
  CallReady();
}

void AdmissionBook::Expire() {
  {
    std::lock_guard lock(mutex_);
    const MonoTime now = clock_.Now();
    for (auto& [pool_id, pool] : pools_) {
      for (const FairQueue::Entry& entry : pool.queue.Expire(now)) {
        GiveUp(entry.id, waiters_.at(entry.id).deadline < now ? DeadlinePassed() : TooLate());
      }
    }
  }
  CallReady();
}

void AdmissionBook::Close() {
  std::lock_guard lock(mutex_);
  is_closed_ = true;
}

void AdmissionBook::RefuseWaiting() {
  {
    std::lock_guard lock(mutex_);
    while (!waiters_.empty()) {
      const EntryId id = waiters_.begin()->first;
      pools_.at(waiters_.begin()->second.pool).queue.Erase(id);
      GiveUp(id, RouterDraining());
    }
  }
  CallReady();
}

size_t AdmissionBook::queued(PoolId pool) const {
  std::lock_guard lock(mutex_);
  return pools_.at(pool).queue.size();
}

size_t AdmissionBook::pools() const {
  std::lock_guard lock(mutex_);
  return pools_.size();
}

double AdmissionBook::saturation(PoolId pool) const {
  std::lock_guard lock(mutex_);
  const Pool& of = pools_.at(pool);
  return of.places == 0 ? 0 : static_cast<double>(of.taken) / of.places;
}

void AdmissionBook::Release(EntryId id) {
  {
    std::lock_guard lock(mutex_);
    const MonoTime now = clock_.Now();
    const auto held = held_.extract(id);
    for (const auto& [pool, places] : held.mapped().places) TakeBack(pools_.at(pool), places);
    Pool& first = pools_.at(held.mapped().first_pool);
    if (first.queue.size() > 0) first.rate.OnDone(held.mapped().tokens, first.places, now);
    PumpAll(now);
  }
  CallReady();
}

void AdmissionBook::Move(EntryId id, PoolId from, PoolId to) {
  {
    std::lock_guard lock(mutex_);
    Held& held = held_.at(id);
    TakeBack(pools_.at(from), 1);
    --held.places[from];
    ++held.places[to];
    ++pools_.at(to).taken;
    Pump(pools_.at(from), clock_.Now());
  }
  CallReady();
}

void AdmissionBook::LeavePool(EntryId id, PoolId pool) {
  {
    std::lock_guard lock(mutex_);
    TakeBack(pools_.at(pool), 1);
    --held_.at(id).places[pool];
    Pump(pools_.at(pool), clock_.Now());
  }
  CallReady();
}

void AdmissionBook::TakeBack(Pool& pool, uint32_t places) {
  CHECK(pool.taken >= places, "places given back twice");
  pool.taken -= places;
}

void AdmissionBook::OnFirstToken(EntryId id) {
  std::lock_guard lock(mutex_);
  Held& held = held_.at(id);
  if (std::exchange(held.has_first_token, true)) return;
  Pool& pool = pools_.at(held.first_pool);
  const MonoTime now = clock_.Now();
  Smooth(Seconds(now - held.admitted), pool.first_token_seconds);
  pool.first_token_at = now;
}

void AdmissionBook::OnTokens(PoolId pool, double seconds, uint32_t tokens) {
  std::lock_guard lock(mutex_);
  pools_.at(pool).pace.Add(seconds, tokens, clock_.Now());
}

void AdmissionBook::Charge(EntryId id, uint64_t prompt_tokens, uint64_t completion_tokens) {
  std::lock_guard lock(mutex_);
  const Held& held = held_.at(id);
  Pool& pool = pools_.at(held.first_pool);
  if (completion_tokens > 0) {
    Smooth(static_cast<double>(completion_tokens) / held.sequences, pool.answer_tokens);
  }
  pool.queue.Charge(
      held.tenant->name, held.tenant->weight,
      static_cast<double>(prompt_tokens + completion_tokens) - static_cast<double>(held.tokens));
}

void AdmissionBook::CallReady() {
  if (calling == this) return;
  const AdmissionBook* const outer = std::exchange(calling, this);
  for (;;) {
    std::function<void()> next;
    {
      std::lock_guard lock(mutex_);
      if (ready_.empty()) break;
      next = std::move(ready_.front());
      ready_.pop_front();
    }
    next();
  }
  calling = outer;
}

}  // namespace terrace
