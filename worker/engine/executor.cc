#include "worker/engine/executor.h"

#include <utility>

namespace terrace {

SequenceOutput ChooseTokens(const PlannedSequence& part, const ChooseToken& choose) {
  SequenceOutput output;
  const std::span<const int32_t> proposed = part.tokens.last(part.proposed);
  TokenCounts own_counts;  // of what was accepted too
  if (!proposed.empty()) own_counts = *part.counts;
  const TokenCounts& counts = proposed.empty() ? *part.counts : own_counts;
  for (uint32_t row = 0; row <= proposed.size(); ++row) {
    StatusOr<SampledToken> chosen = choose(row, counts, part.sample_index + row);
    if (!chosen.ok()) {
      output.error = chosen.status();
      break;
    }
    output.tokens.push_back(*std::move(chosen));
    const int32_t token = output.tokens.back().token;
    if (row == proposed.size() || token != proposed[row]) break;
    own_counts.AddGenerated(token);
  }
  return output;
}

}  // namespace terrace
