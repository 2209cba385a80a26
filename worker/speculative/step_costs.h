// What steps of the model that answers take: learned from steps as they come, and told for steps with drafts.
// Owned by the DraftController; one thread.
//
// Tokens of answers, drafted or not, have a CostCurve. Tokens of prompts, which differ in what they attend
// to, have one price each: beside prompts a drafted token costs at least as much. Steps with few of them tell
// what the others cost too, as there may be none without: what the prompts are believed to take is taken
// off, though never more than their share of the tokens.
#pragma once

#include <cstdint>

#include "worker/speculative/cost_curve.h"

namespace terrace {

// What a step computes without drafts.
struct StepLoad {
  uint32_t decodes = 0;  // sequences that get a token each
  uint32_t others = 0;   // tokens of prompts and of drafts from outside
};

class StepCosts {
 public:
  // Of a step that verified `drafted` tokens.
  void Learn(const StepLoad& load, uint32_t drafted, double seconds);

  // Of a step without drafts or prompts; 0 while nothing is known.
  double Seconds(double decodes) const { return curve_.Seconds(decodes); }
  // Whether a step without drafts has to be measured again: it is what steps with drafts are compared with,
  // and where all steps had drafts nobody would notice that it was taken for too slow.
  bool wants_plain_step(const StepLoad& load) const;
  // What drafted tokens add to a step.
  double ExtraSeconds(const StepLoad& load, uint32_t drafted) const;
  // The same, and at least what was measured of decodes, however long ago.
  double MeasuredExtraSeconds(const StepLoad& load, uint32_t drafted) const;

 private:
  void LearnPrompts(const StepLoad& load, uint32_t drafted, double seconds);

  CostCurve curve_;             // by tokens of answers
  double prompt_seconds_ = 0;   // that a token of a prompt adds to a step
  bool knows_prompts_ = false;  // it was measured
};

}  // namespace terrace
