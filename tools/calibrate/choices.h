// What thresholds would do to recorded requests, and which ones are worth a test. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace terrace {

// One request. The first tier whose score is above its threshold answers, else the last one.
struct Choice {
  std::vector<double> scores = {};  // [tiers - 1]
  std::vector<bool> is_right = {};  // [tiers]
  // [tiers]: of the request when this tier answers, with all that is asked before.
  std::vector<double> costs = {};
  double last_tier_cost = 0;  // when nothing else is asked
};

using Thresholds = std::vector<double>;  // [tiers - 1]

struct Tally {
  uint64_t rows = 0, right = 0;
  uint64_t last_tier_right = 0;
  uint64_t losses = 0;  // wrong where the last tier is right
  // Of answers that are given before the last tier is asked: what is left to 1 of their scores, as if these
  // were the probabilities of no loss.
  double expected_losses = 0;
  double cost = 0, last_tier_cost = 0;
  std::vector<uint64_t> answered_by = {};  // [tiers]: rows

  double accuracy() const { return Share(right); }
  double last_tier_accuracy() const { return Share(last_tier_right); }
  double relative_cost() const { return last_tier_cost > 0 ? cost / last_tier_cost : 0; }

 private:
  double Share(uint64_t count) const {
    return rows == 0 ? 0 : static_cast<double>(count) / static_cast<double>(rows);
  }
};

// `choices` has at least one.
Tally Decide(std::span<const Choice> choices, const Thresholds& thresholds);
// The best that any scores could do: the cheapest tier that is right answers, else the last one.
Tally DecideByOracle(std::span<const Choice> choices);

inline constexpr size_t kMaxCandidates = 64;

// Thresholds that no others beat on these choices in both expected losses and cost, the fewest losses first:
// B. Laufer-Goldshtein et al., "Efficiently controlling multiple risks with Pareto testing" (2023). They are
// taken from a grid over the scores; the first ones let only the last tier answer. 1 to kMaxCandidates;
// `choices` has at least one.
std::vector<Thresholds> SafestFirst(std::span<const Choice> choices);

}  // namespace terrace
