// How many tokens of a step's sequences are drafted, and how many of the drafts are verified: as many as are
// expected to give the most tokens of answers a second, and none where that is fewer than without. It knows
// what steps took, what drafts took and how often they were right; it has no clock and no thread. Owned by
// Speculation (worker/engine/speculation.h); one thread.
//
// A drafted token is right with the chance a (Acceptance) if those before it were, so the i-th one of a draft
// is worth a^i tokens. Of all sequences' drafted tokens the most valuable ones come first; the number taken
// maximizes
//
//   (decodes + their worth) / (seconds of the step without drafts + seconds they add to it + drafting)
//
// where seconds come from the cost curves of the two models. Beside prompts a token adds what those cost.
//
// A drafter is asked now and then although it does not pay, as what it is worth may have changed: for at most
// `probe_share` of the time of all steps, with all that a model has to read for it. An answer that went on
// without drafts for long may have become too long for that; then others are looked at, and where theirs are
// right it is tried again when what was known of it has faded (Acceptance::Age). Of a drafter whose drafts
// cost next to nothing even the asking is weighed: a step of a small model is not much longer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/speculative/acceptance.h"
#include "worker/speculative/cost_curve.h"

namespace terrace {

// What a step computes without drafts.
struct StepLoad {
  uint32_t decodes = 0;  // sequences that get a token each
  uint32_t others = 0;   // tokens of prompts and of drafts from outside
};

// A sequence that may get a draft. Borrowed for the call.
struct DraftCandidate {
  uint64_t id = 0;       // of the sequence
  uint32_t most = 0;     // tokens: that it may get, then that it has got
  uint32_t missing = 1;  // tokens that a model has to compute for the first one
  uint32_t left = 0;     // tokens of its answer that are to come, at most
  const Acceptance* acceptance = nullptr;
};

class DraftController {
 public:
  struct Options {
    uint32_t max_tokens = 8;         // of a draft
    bool is_drafting_cheap = false;  // see Drafter, like the next one
    uint32_t max_pass_tokens = 256;
    double probe_share = 0.005;
  };

  explicit DraftController(const Options& options) : options_(options) {}

  // Whether to ask at all. False where a cheap drafter gives less than asking takes; then what is saved up
  // for probing pays for asking now and then.
  bool WantsDrafts();
  // Tokens to ask the drafter for, of each candidate; `room` are those that the step can verify in all.
  std::vector<uint32_t> Ask(const StepLoad& load, std::span<const DraftCandidate> candidates, uint32_t room);
  // Tokens to verify of each draft: its first ones. What drafting took is spent.
  std::vector<uint32_t> Verify(const StepLoad& load, std::span<const DraftCandidate> candidates,
                               uint32_t room) const;

  // What was measured: of a step that verified `drafted` tokens, of a call of the drafter (see
  // Drafts::passes), and of a draft's comparison with the answer.
  void LearnStep(const StepLoad& load, uint32_t drafted, double seconds);
  void LearnDrafting(std::span<const uint32_t> passes, double seconds);
  void LearnOutcome(uint32_t compared, uint32_t right) { acceptance_.Add(compared, right); }
  // Of the step last learned, which the drafter was asked in: what asking took, and what its drafts saved, in
  // seconds.
  void LearnAsking(double asking, double saved);

  // Of a step without drafts, and what drafted tokens add to it; 0 while nothing is known.
  double StepSeconds(uint32_t decodes) const { return step_seconds_.Seconds(decodes); }
  double ExtraSeconds(const StepLoad& load, uint32_t drafted) const;
  // What is believed of a sequence that had no drafts yet.
  double prior() const { return acceptance_.Rate(kPrior); }

 private:
  // Before anything is known: drafts are tried.
  static constexpr double kPrior = 0.6;

  struct Guess;
  std::vector<Guess> Guesses(std::span<const DraftCandidate> candidates, size_t most) const;
  // What is decided by what is believed: which drafts to verify, and to make; or whom to read for, by what
  // was measured: to see whether costs have changed, drafts of those are enough that are read already.
  enum class Purpose : uint8_t { kVerify, kDraft, kRead };
  std::vector<uint32_t> Best(const StepLoad& load, std::span<const DraftCandidate> candidates, uint32_t room,
                             Purpose purpose) const;
  std::vector<DraftCandidate> WorthReading(const StepLoad& load, std::span<const DraftCandidate> candidates,
                                           uint32_t room) const;
  double ReadSeconds(uint32_t missing) const;
  size_t PaidProbe(std::span<const DraftCandidate> candidates);
  size_t NewProbe(std::span<const DraftCandidate> candidates, std::span<const uint32_t> lengths);
  void Probe(std::span<const DraftCandidate> candidates, std::vector<uint32_t>& lengths);
  void LearnPrompts(const StepLoad& load, uint32_t drafted, double seconds);

  const Options options_;
  CostCurve step_seconds_;  // of steps that decode only
  // Of passes of the drafter's model. Forgotten slowly: to try what a large one takes is to read for long.
  CostCurve draft_seconds_{8192};
  double prompt_seconds_ = 0;   // that a token of a prompt adds to a step
  bool knows_prompts_ = false;  // it was measured
  double latest_seconds_ = 0;   // of the step last learned
  double probe_seconds_ = 0;    // saved up for probing
  uint64_t probed_ = 0;         // the sequence that was paid for last, and in so many calls may still be read
  uint32_t paid_calls_ = 0;
  uint64_t asked_steps_ = 0;
  double asking_seconds_ = 0, saved_seconds_ = 0;  // of a step, lately
  Acceptance acceptance_{AcceptanceMemory{.kept = 0.95, .most_trials = 100, .doubt = 0}};  // of all sequences
};

}  // namespace terrace
