// Whether to ask a drafter in a step, and for how much. What drafts cost and what they are worth decides, and
// a drafter is asked now and then although it does not pay, as that may have changed. Owned by the
// DraftController; one thread. Implementations: CheapAsking (cheap_asking.h), ModelAsking (model_asking.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/speculative/best_lengths.h"

namespace terrace {

class Asking {
 public:
  virtual ~Asking() = default;

  // Once a step: whether to ask at all. True may have been paid for.
  virtual bool WantsDrafts() = 0;
  // Tokens to ask the drafter for, of each candidate.
  virtual std::vector<uint32_t> Ask(const DraftableStep& step,
                                    std::span<const DraftCandidate> candidates) = 0;

  // What was measured, in seconds: of a step; of a call of the drafter (see Drafts::passes); and of the step
  // last learned, if it was weighed for drafts, what that and asking took and what its drafts saved.
  virtual void LearnStep(double seconds) = 0;
  virtual void LearnDrafting(std::span<const uint32_t> passes, double seconds) = 0;
  virtual void LearnAsking(double asking, double saved) = 0;
  // An answer that might have had drafts has ended, with so many tokens.
  virtual void LearnAnswer(uint32_t tokens) = 0;
};

}  // namespace terrace
