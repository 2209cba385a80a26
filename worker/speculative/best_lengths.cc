#include "worker/speculative/best_lengths.h"

#include <algorithm>

namespace terrace {
namespace {

// A guess that is worth less is not made.
constexpr double kLeastWorth = 0.02;
// More tokens a second have to be expected: what is measured is not exact.
constexpr double kLeastGain = 1.04;

struct Guess {
  double worth = 0;  // tokens
  uint32_t candidate = 0;
  uint32_t index = 0;  // in the draft
};

// The most valuable ones that there is room for. Of a draft an earlier token comes before a later one.
std::vector<Guess> Guesses(const DraftableStep& step, std::span<const DraftCandidate> candidates) {
  std::vector<Guess> guesses;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const double rate = candidates[i].acceptance->Rate(step.prior);
    double worth = rate;
    const uint32_t length = std::min(candidates[i].most, step.max_tokens);
    for (uint32_t index = 0; index < length && worth >= kLeastWorth; ++index, worth *= rate)
      guesses.push_back({.worth = worth, .candidate = static_cast<uint32_t>(i), .index = index});
  }
  const size_t kept = std::min<size_t>(step.room, guesses.size());
  std::ranges::partial_sort(guesses, guesses.begin() + static_cast<ptrdiff_t>(kept),
                            [](const Guess& a, const Guess& b) {
                              if (a.worth != b.worth) return a.worth > b.worth;
                              return a.index != b.index ? a.index < b.index : a.candidate < b.candidate;
                            });
  guesses.resize(kept);
  return guesses;
}

}  // namespace

std::vector<uint32_t> BestLengths(const DraftableStep& step, std::span<const DraftCandidate> candidates,
                                  StepBill& bill) {
  std::vector<uint32_t> lengths(candidates.size(), 0);
  const double plain = step.seconds();
  if (!(plain > 0)) return lengths;  // the first steps tell what one takes
  const std::vector<Guess> guesses = Guesses(step, candidates);
  double worth = 0, best = kLeastGain * step.load.decodes / plain;
  size_t taken = 0;
  for (size_t i = 0; i < guesses.size(); ++i) {
    const Guess& guess = guesses[i];
    worth += guess.worth;
    const double seconds = bill.Add(candidates[guess.candidate], guess.index, guess.worth);
    const double rate = (step.load.decodes + worth) / seconds;
    if (rate <= best) continue;
    best = rate;
    taken = i + 1;
  }
  for (const Guess& guess : std::span(guesses).first(taken)) ++lengths[guess.candidate];
  return lengths;
}

}  // namespace terrace
