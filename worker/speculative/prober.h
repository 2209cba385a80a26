// Has a model draft a token now and then for a sequence that would get none, as what its drafts are worth may
// have changed. It takes the sequence that the model has least to read for, and only what was saved up
// (ProbeSavings) pays for that: for all of it, so that what takes several calls is read to its end. Owned by
// ModelAsking; one thread.
//
// An answer that went on without drafts for long may have become too long for that; then others are looked
// at, and where theirs are right it is tried again when what was known of it has faded (Acceptance::Age).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "worker/speculative/best_lengths.h"
#include "worker/speculative/pass_costs.h"
#include "worker/speculative/probe_savings.h"

namespace terrace {

class Prober {
 public:
  // `share` of the time of all steps.
  explicit Prober(double share) : savings_(share) {}

  void Earn(double step_seconds) { savings_.Earn(step_seconds); }
  // Once a call of the drafter. `lengths`: tokens that each candidate is to get; one that would get none may
  // get one.
  void Probe(const PassCosts& costs, std::span<const DraftCandidate> candidates, std::span<uint32_t> lengths);

 private:
  size_t PaidProbe(std::span<const DraftCandidate> candidates) const;
  size_t NewProbe(const PassCosts& costs, std::span<const DraftCandidate> candidates,
                  std::span<const uint32_t> lengths);

  ProbeSavings savings_;
  uint64_t probed_ = 0;      // the sequence that was paid for last
  uint32_t paid_calls_ = 0;  // in so many calls it may still be read
};

}  // namespace terrace
