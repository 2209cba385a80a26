// What reports say of drafts: what workers guessed of the answers themselves, and verified. Values.
#pragma once

#include <cstdint>
#include <optional>

#include "base/json_fwd.h"
#include "worker/engine/speculation_stats.h"

namespace terrace {

struct SpeculationFigures {
  uint64_t verified = 0, accepted = 0;  // tokens, as the answers told
  // Of a model in this process, or of one worker, whoever asked it: all that its engine verified meanwhile,
  // of answers that were not completed too, perhaps without its last step. Absent where it has no drafter, or
  // does not tell.
  std::optional<SpeculationStats> engine = {};

  bool empty() const { return verified == 0 && !engine.has_value(); }
  void Add(uint64_t more_verified, uint64_t more_accepted) {
    verified += more_verified;
    accepted += more_accepted;
  }
};

// The share of drafted tokens that were accepted; absent where there were none.
inline std::optional<double> AcceptedShare(uint64_t verified, uint64_t accepted) {
  if (verified == 0) return std::nullopt;
  return static_cast<double>(accepted) / static_cast<double>(verified);
}

// docs/how-to/benchmark.md says what each member means. null: it is not known.
Json SpeculationToJson(const SpeculationFigures& figures);

}  // namespace terrace
