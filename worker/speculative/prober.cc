#include "worker/speculative/prober.h"

#include <algorithm>

namespace terrace {

// The candidate that is still being read, or none: their number.
size_t Prober::PaidProbe(std::span<const DraftCandidate> candidates) const {
  if (paid_calls_ == 0) return candidates.size();
  const auto found = std::ranges::find(candidates, probed_, &DraftCandidate::id);
  return found != candidates.end() && found->most > 0 ? static_cast<size_t>(found - candidates.begin())
                                                      : candidates.size();
}

// The one that it costs least for, paid for; or none, where so much was not saved up.
size_t Prober::NewProbe(const PassCosts& costs, std::span<const DraftCandidate> candidates,
                        std::span<const uint32_t> lengths) {
  size_t cheapest = candidates.size();
  for (size_t i = 0; i < candidates.size(); ++i) {
    const DraftCandidate& candidate = candidates[i];
    if (lengths[i] > 0 || candidate.most == 0 || !candidate.acceptance->is_due()) continue;
    if (cheapest == candidates.size() || candidate.missing < candidates[cheapest].missing) cheapest = i;
  }
  if (cheapest == candidates.size() || !costs.is_known()) return candidates.size();
  const DraftCandidate& candidate = candidates[cheapest];
  if (!savings_.Pay(costs.ReadSeconds(std::max(candidate.missing, 1u)))) return candidates.size();
  probed_ = candidate.id;
  paid_calls_ = candidate.missing / costs.max_pass_tokens() + 2;  // the answer goes on meanwhile
  return cheapest;
}

void Prober::Probe(const PassCosts& costs, std::span<const DraftCandidate> candidates,
                   std::span<uint32_t> lengths) {
  size_t probed = PaidProbe(candidates);
  if (probed == candidates.size()) probed = NewProbe(costs, candidates, lengths);
  if (probed == candidates.size()) return;
  lengths[probed] = std::max(lengths[probed], 1u);
  const bool is_read = candidates[probed].missing <= costs.max_pass_tokens();  // with this call
  paid_calls_ = is_read ? 0 : paid_calls_ - 1;
}

}  // namespace terrace
