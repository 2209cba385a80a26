#include "router/dispatch/poison.h"

#include <algorithm>
#include <utility>

namespace terrace {

Status PoisonRequest() {
  return WithReason(Internal("two workers were lost while they ran this request: it is quarantined"),
                    kPoisonReason);
}

Hash128 RequestFingerprint(std::string_view model_digest, std::string_view tenant,
                           std::span<const TokenId> prompt) {
  const std::string_view tokens(reinterpret_cast<const char*>(prompt.data()), prompt.size_bytes());
  return Hasher().Add(model_digest).Add(tenant).Add(tokens).Finish();
}

bool Quarantine::is_empty() const {
  std::lock_guard lock(mutex_);
  return refused_.empty() && suspects_.empty();
}

void Quarantine::Add(const Hash128& request) {
  std::lock_guard lock(mutex_);
  AddRefused(request);
}

bool Quarantine::Has(const Hash128& request) {
  std::lock_guard lock(mutex_);
  Expire();
  return std::ranges::find(refused_, request, &Refused::request) != refused_.end();
}

Blame Quarantine::OnDeath(const Hash128& request, const WorkerDeath& death, const IsBack& is_back) {
  std::lock_guard lock(mutex_);
  Expire();
  Suspect next{.request = request, .until = clock_.Now() + kTime, .death = death, .number = ++deaths_};
  const Suspect* const before = Find(request);
  if (before != nullptr && !before->death.WasNone(is_back)) {
    const WorkerDeath& last = before->death;
    if (death.boarded < before->number) {  // another answer that ran beside it, at that worker or another
      next.number = before->number;
      next.is_doubtful = before->is_doubtful;
      next.death.first = std::min(death.first, last.first);
      next.death.likely_last = std::max(death.likely_last, last.likely_last);
      next.death.last = std::max(death.last, last.last);
      next.death.had_begun |= last.had_begun;
      if (last.silent.empty()) next.death.silent.clear();
    } else if (death.MayBeAt(last)) {
      next.death.had_begun |= last.had_begun_and_died();
      next.is_doubtful = next.death.had_begun;
      if (next.death.had_begun && (before->is_doubtful || death.IsAt(last))) {
        AddRefused(request);
        return Blame::kRequest;
      }
    }
  }
  const Blame blame = next.is_doubtful && next.number == deaths_ ? Blame::kUnclear : Blame::kNone;
  Clear(request);
  if (suspects_.size() == kMost) suspects_.pop_front();
  suspects_.push_back(std::move(next));
  return blame;
}

bool Quarantine::IsSuspect(const Hash128& request) {
  std::lock_guard lock(mutex_);
  Expire();
  return Find(request) != nullptr;
}

Quarantine::Others Quarantine::OthersThan(const Hash128& request) const {
  std::lock_guard lock(mutex_);
  Others out;
  for (const auto& [id, other] : running_) {
    if (other.request == request) {
      if (other.is_prime) out.own.insert(other.replica);
      continue;
    }
    out.suspects.insert(other.replica);
    if (other.is_prime) out.primes.insert(other.replica);
  }
  return out;
}

Quarantine::Trial Quarantine::Board(const Hash128& request, bool is_prime, ReplicaId replica) {
  std::lock_guard lock(mutex_);
  Trial trial;
  const Suspect* suspect = Find(request);
  if (suspect == nullptr) return trial;
  trial.owner_ = this;
  trial.request_ = request;
  trial.id_ = ++last_trial_;
  trial.boarded_ = deaths_;
  trial.last_ = suspect->death.last;
  running_[trial.id_] = {.request = request, .replica = replica, .is_prime = is_prime};
  return trial;
}

void Quarantine::Trial::Acquit(size_t tokens) {
  {
    std::lock_guard lock(owner_->mutex_);
    const Suspect* suspect = owner_->Find(request_);
    // Not of a death since it began, which another attempt was at.
    if (suspect != nullptr && suspect->number <= boarded_) {
      last_ = suspect->death.last;  // another answer that was lost meanwhile may have been further
      if (tokens <= last_) return;
      owner_->Clear(request_);
    }
  }
  End();
}

void Quarantine::Trial::End() {
  if (owner_ == nullptr) return;
  std::lock_guard lock(owner_->mutex_);
  owner_->running_.erase(id_);
  owner_ = nullptr;
}

void Quarantine::Expire() {
  const MonoTime now = clock_.Now();
  while (!refused_.empty() && refused_.front().until <= now) refused_.pop_front();
  while (!suspects_.empty() && suspects_.front().until <= now) suspects_.pop_front();
}

Quarantine::Suspect* Quarantine::Find(const Hash128& request) {
  const auto found = std::ranges::find(suspects_, request, &Suspect::request);
  return found == suspects_.end() ? nullptr : &*found;
}

void Quarantine::Clear(const Hash128& request) {
  std::erase_if(suspects_, [&](const Suspect& suspect) { return suspect.request == request; });
}

void Quarantine::AddRefused(const Hash128& request) {
  Clear(request);
  std::erase_if(refused_, [&](const Refused& entry) { return entry.request == request; });
  if (refused_.size() == kMost) refused_.pop_front();
  refused_.push_back({request, clock_.Now() + kTime});
}

}  // namespace terrace
