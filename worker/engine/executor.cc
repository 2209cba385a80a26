#include "worker/engine/executor.h"

#include <utility>

namespace terrace {

SequenceOutput ChooseTokens(const PlannedSequence& part, const ChooseToken& choose) {
  SequenceOutput output;
  const std::span<const int32_t> proposed = part.tokens.last(part.proposed);
  const bool counts_accepted = HasPenalties(*part.sampling);  // else nobody looks at the counts
  TokenCounts own_counts;                                     // of what was accepted too
  const TokenCounts* counts = part.counts;
  for (uint32_t row = 0; row <= proposed.size(); ++row) {
    StatusOr<SampledToken> chosen = choose(row, *counts, part.sample_index + row);
    if (!chosen.ok()) {
      output.error = chosen.status();
      break;
    }
    output.tokens.push_back(*std::move(chosen));
    const int32_t token = output.tokens.back().token;
    if (row == proposed.size() || token != proposed[row]) break;
    if (!counts_accepted) continue;
    if (row == 0) own_counts = *part.counts;
    own_counts.AddGenerated(token);
    counts = &own_counts;
  }
  return output;
}

}  // namespace terrace
