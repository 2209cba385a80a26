// How many tokens of a step's sequences are drafted, and how many of the drafts are verified. It knows what
// steps took (StepCosts), how often drafts were right (Acceptance), and by them weighs what a draft is worth
// (BestLengths, BestTrees); whether and how much to ask depends on the drafter (Asking). Where that was
// wrong, what drafts have cost more than they saved, beside turns without any (PlainTurns), ends them for a
// while (AskingBalance). It has no clock and no thread. Owned by Speculation (worker/engine/speculation.h);
// one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "worker/speculative/acceptance.h"
#include "worker/speculative/asking.h"
#include "worker/speculative/asking_balance.h"
#include "worker/speculative/best_lengths.h"
#include "worker/speculative/best_trees.h"
#include "worker/speculative/plain_turns.h"
#include "worker/speculative/step_costs.h"

namespace terrace {

// What the engine did from the end of a step to the end of the next one.
struct DraftedTurn {
  bool was_weighed = false;  // for drafts
  bool tells_costs = true;   // what its step took says something of others like it
  double asking = 0;         // seconds that weighing and asking took
  double saved = 0;          // seconds that drafts saved, asking apart, by what steps are believed to take
  uint32_t gained = 0;       // tokens that drafts gave
  std::optional<double> seconds = std::nullopt;  // in all; none where the engine waited in it
};

class DraftController {
 public:
  struct Options {
    uint32_t max_tokens = 8;         // of a draft
    uint32_t max_branch_tokens = 0;  // of a second guess; 0: there are none
    bool is_drafting_cheap = false;  // see Drafter, like the next one
    uint32_t max_pass_tokens = 256;
    bool adapts = true;          // false: drafts are as long as they may be, whatever they cost and are worth
    double probe_share = 0.005;  // of the time of all steps, for a drafter that does not pay
  };

  explicit DraftController(const Options& options);

  // Whether to ask at all. False where what a step or a turn without drafts takes has to be measured again;
  // where drafts of so many sequences have cost more than they saved; and where a cheap drafter gives less
  // than asking takes: then what is saved up for probing pays for asking now and then.
  bool WantsDrafts(const StepLoad& load) {
    if (!adapts_) return true;
    return !costs_.wants_plain_step(load) && !plain_turns_.is_window() && balance_.may_ask(load.decodes) &&
           asking_->WantsDrafts();
  }
  // Tokens to ask the drafter for, of each candidate; `room` are those that the step can verify in all.
  std::vector<uint32_t> Ask(const StepLoad& load, std::span<const DraftCandidate> candidates, uint32_t room);
  // Tokens to verify of each draft and of each second guess. What drafting took is spent.
  DraftLengths Verify(const StepLoad& load, std::span<const DraftCandidate> candidates, uint32_t room) const;

  // What was measured: of a step that verified `drafted` tokens, of a call of the drafter (see
  // Drafts::passes), and of a draft's comparison with the answer.
  void LearnStep(const StepLoad& load, uint32_t drafted, double seconds);
  void LearnDrafting(std::span<const uint32_t> passes, double seconds) {
    asking_->LearnDrafting(passes, seconds);
  }
  void LearnOutcome(uint32_t compared, uint32_t right) { acceptance_.Add(compared, right); }
  // Whether the first token of a second guess was the one that was chosen.
  void LearnBranch(bool is_right) { branch_acceptance_.Add(1, is_right ? 1 : 0); }
  // Of the turn with the step last learned, which had answers. Where it had nothing else, it is compared with
  // turns that had no drafter near; else what steps are believed to take has to do.
  void LearnTurn(const StepLoad& load, const DraftedTurn& turn);
  // An answer that might have had drafts has ended, with so many tokens.
  void LearnAnswer(uint32_t tokens) { asking_->LearnAnswer(tokens); }

  // Of a step without drafts, and what drafted tokens add to it; 0 while nothing is known.
  double StepSeconds(uint32_t decodes) const { return costs_.Seconds(decodes); }
  double ExtraSeconds(const StepLoad& load, uint32_t drafted) const {
    return costs_.ExtraSeconds(load, drafted);
  }
  // What is believed of a sequence that had no drafts yet.
  double prior() const { return acceptance_.Rate(kPrior); }

 private:
  // Before anything is known: drafts are tried.
  static constexpr double kPrior = 0.6;
  // Second guesses are compared before they are verified: there is nothing to try.
  static constexpr double kBranchPrior = 0.1;

  static constexpr AcceptanceMemory kMemory = {.kept = 0.95, .most_trials = 100, .doubt = 0};

  double WithoutStalls(double seconds, double believed);
  DraftableStep StepOf(const StepLoad& load, uint32_t room) const;

  std::vector<uint32_t> FullLengths(std::span<const DraftCandidate> candidates, uint32_t room) const;
  DraftLengths FullTrees(std::span<const DraftCandidate> candidates, uint32_t room) const;

  const uint32_t max_tokens_, max_branch_tokens_;
  const bool adapts_;
  const std::unique_ptr<Asking> asking_;
  AskingBalance balance_;
  PlainTurns plain_turns_;
  double excess_ = 1;  // what turns took lately, asking apart, of what they were believed to take
  StepCosts costs_;
  // Of all sequences: of drafts, and of the first tokens of second guesses.
  Acceptance acceptance_{kMemory}, branch_acceptance_{kMemory};
};

}  // namespace terrace
