// How often drafts were right lately: the chance that a drafted token is the one that is chosen, given that
// those before it were. A value; the Scheduler keeps one with every sequence.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "base/status.h"

namespace terrace {

// What is remembered, and how sure one has to be. The defaults are those of a sequence: drafts that were
// right without end are worth less than 0.1 after 16 that were wrong at once.
struct AcceptanceMemory {
  double kept = 0.88;  // of what was known, with every draft
  double most_trials = 8;
  double steps = 1024;  // without drafts: what was known is believed 1/e as much after so many
  double doubt = 0.7;   // standard errors below the mean: who is taken for better than he is costs time
};

// What a sequence's Acceptance knows, for another one to go on with.
struct AcceptanceState {
  static constexpr double kMostTrials = AcceptanceMemory{}.most_trials, kMostPriorTrials = 2;
  static constexpr double kMostWait = 1 << 20;

  double right = 0;   // of `trials`
  double trials = 0;  // tokens compared, what is forgotten of them apart
  double prior_trials = kMostPriorTrials;
  double wait = 0;  // steps from the last draft to the next look

  bool operator==(const AcceptanceState&) const = default;
  // Whether an Acceptance may be so. NaN is in no range.
  bool is_possible() const {
    const auto is_in = [](double value, double most) { return value >= 0 && value <= most; };
    return is_in(trials, kMostTrials) && is_in(right, trials) && is_in(prior_trials, kMostPriorTrials) &&
           is_in(wait, kMostWait) && trials + prior_trials > 0;
  }
};

// Of a sequence: of its drafts, and of the first tokens of its second guesses.
struct DraftRecord {
  AcceptanceState drafts = {}, branches = {};

  bool operator==(const DraftRecord&) const = default;
};

class Acceptance {
 public:
  Acceptance() = default;
  explicit Acceptance(const AcceptanceMemory& memory) : memory_(memory) {}
  // Goes on with what is known already: of a sequence, and is_possible().
  explicit Acceptance(const AcceptanceState& state)
      : right_(state.right), trials_(state.trials), prior_trials_(state.prior_trials), wait_(state.wait) {
    CHECK(state.is_possible(), "no state of an Acceptance");
  }

  // Of a sequence. When the last look was is left out: the next one may be a wait later.
  AcceptanceState state() const {
    const double trials = std::min(trials_, AcceptanceState::kMostTrials);  // rounding may pass it
    return {.right = std::min(right_, trials),
            .trials = trials,
            .prior_trials = prior_trials_,
            .wait = std::min(wait_, AcceptanceState::kMostWait)};
  }

  // Of a draft so many tokens were compared with the answer, and the first `right` of them are in it. Behind
  // the first wrong one nothing is known.
  void Add(uint32_t compared, uint32_t right) {
    if (compared == 0) return;
    right_ = right_ * memory_.kept + right;
    trials_ = trials_ * memory_.kept + right + (right < compared ? 1 : 0);
    prior_trials_ *= memory_.kept;
    const double excess = std::max(trials_ / memory_.most_trials, 1.0);
    right_ /= excess;
    trials_ /= excess;
    waited_ = 0;
    wait_ = right > 0 ? 0 : wait_ * kLongerWait + 1;
  }

  // The answer has gone on by a step.
  void Age() {
    ++waited_;
    const double forgotten = 1 / memory_.steps;
    right_ -= right_ * forgotten;
    trials_ -= trials_ * forgotten;
    prior_trials_ += (kPriorTrials - prior_trials_) * forgotten;
  }

  // Whether to look again, where nothing is expected: the more seldom the more often it was wrong in a row.
  bool is_due() const { return waited_ >= wait_; }

  // `prior` counts at first, and less with each draft.
  double Rate(double prior) const {
    const double trials = trials_ + prior_trials_, mean = (right_ + prior_trials_ * prior) / trials;
    return std::max(mean - memory_.doubt * std::sqrt(std::max(mean * (1 - mean), 0.0) / trials), 0.0);
  }

 private:
  static constexpr double kPriorTrials = AcceptanceState::kMostPriorTrials, kLongerWait = 1.25;

  AcceptanceMemory memory_;
  double right_ = 0, trials_ = 0, prior_trials_ = kPriorTrials;
  double waited_ = 0, wait_ = 0;  // steps: since the last draft, and from it to the next look
};

}  // namespace terrace
