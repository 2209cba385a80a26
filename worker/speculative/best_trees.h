// Whether second guesses (branches) go with the drafts of a step: small trees of two chains that part behind
// the answer's last token. A pure choice.
//
// A branch is verified as a part of the step of its own: of m tokens it costs m + 1, as the answer's last
// token is computed again. Its first token is right with the chance q, measured over all drafts, not only
// those whose own first token was wrong; those behind it are right as often as a draft's, a. So it is worth
//
//   q (1 + a + ... + a^(m-1))
//
// tokens beside its draft, as only one of both can be right. Tokens of drafts and branches are taken in the
// order of their worth for a token of the step, as BestLengths does; a branch is never there without its
// draft. Trees are taken only where they are expected to give more tokens a second than the best chains.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/speculative/best_lengths.h"

namespace terrace {

// Tokens of each candidate's draft and of its branch: their first ones.
struct DraftLengths {
  std::vector<uint32_t> chains = {}, branches = {};

  // That the step computes for them.
  uint32_t tokens() const {
    uint32_t sum = 0;
    for (const uint32_t length : chains) sum += length;
    for (const uint32_t length : branches) sum += length > 0 ? length + 1 : 0;
    return sum;
  }
};

// `chains`: the best lengths without branches, of drafts that are there.
DraftLengths BestTrees(const DraftableStep& step, std::span<const DraftCandidate> candidates,
                       std::vector<uint32_t> chains);

}  // namespace terrace
