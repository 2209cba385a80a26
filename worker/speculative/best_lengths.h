// How many tokens of each sequence's draft a step takes: as many as are expected to give the most tokens of
// answers a second, and none where that is fewer than without. A pure choice.
//
// A drafted token is right with the chance a (Acceptance) if those before it were, so the i-th one of a draft
// is worth a^i tokens. Of all sequences' drafted tokens the most valuable ones come first; the number taken
// maximizes
//
//   (decodes + their worth) / seconds of the step with them
//
// where the seconds are a StepBill's: those of a step that verifies them, or of one that drafts them first.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/speculative/acceptance.h"
#include "worker/speculative/step_costs.h"

namespace terrace {

// A sequence that may get a draft. Borrowed for the call.
struct DraftCandidate {
  uint64_t id = 0;       // of the sequence
  uint32_t most = 0;     // tokens: that it may get, then that it has got
  uint32_t missing = 1;  // tokens that a model has to compute for the first one
  uint32_t left = 0;     // tokens of its answer that are to come, at most
  const Acceptance* acceptance = nullptr;
  uint32_t most_branch = 0;            // tokens of a second guess that it has got (see BestTrees)
  const Acceptance* branch = nullptr;  // how often the first one of a second guess was right
};

// A step that may get drafts. Borrowed for the call.
struct DraftableStep {
  StepLoad load = {};
  uint32_t room = 0;                 // drafted tokens that it can verify in all
  uint32_t max_tokens = 0;           // of a draft
  double prior = 0;                  // the chance of a right token, of a sequence that had no drafts yet
  double branch_prior = 0;           // the same, of the first token of a second guess
  const StepCosts* costs = nullptr;  // of steps like it

  // Without drafts; 0: it is not known.
  double seconds() const { return costs->Seconds(load.decodes); }
};

// What a step takes as it gets one drafted token after the other.
class StepBill {
 public:
  virtual ~StepBill() = default;
  // Seconds of the step, with what is to be done before it, when it gets the token at `index` of the
  // candidate's draft too, which is worth so many tokens. A draft's tokens come in their order.
  virtual double Add(const DraftCandidate& candidate, uint32_t index, double worth) = 0;
};

// Tokens of each candidate's draft: its first ones. All 0 while it is not known what a step takes. `bill` is
// new.
std::vector<uint32_t> BestLengths(const DraftableStep& step, std::span<const DraftCandidate> candidates,
                                  StepBill& bill);

}  // namespace terrace
