#include "router/dispatch/poison.h"

#include <algorithm>

namespace terrace {

Status PoisonRequest() {
  return WithReason(Internal("two workers were lost while they ran this request: it is quarantined"),
                    kPoisonReason);
}

Hash128 RequestFingerprint(std::string_view tier, std::string_view tenant, std::span<const TokenId> prompt) {
  const std::string_view tokens(reinterpret_cast<const char*>(prompt.data()), prompt.size_bytes());
  return Hasher().Add(tier).Add(tenant).Add(tokens).Finish();
}

void Quarantine::Add(const Hash128& request) {
  std::lock_guard lock(mutex_);
  std::erase_if(entries_, [&](const Entry& entry) { return entry.request == request; });
  if (entries_.size() == kMost) entries_.pop_front();
  entries_.push_back({request, clock_.Now() + kTime});
}

bool Quarantine::Has(const Hash128& request) {
  std::lock_guard lock(mutex_);
  while (!entries_.empty() && entries_.front().until <= clock_.Now()) entries_.pop_front();
  return std::ranges::find(entries_, request, &Entry::request) != entries_.end();
}

bool Quarantine::is_empty() const {
  std::lock_guard lock(mutex_);
  return entries_.empty();
}

}  // namespace terrace
