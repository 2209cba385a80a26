#include "worker/speculative/step_costs.h"

#include <algorithm>

namespace terrace {
namespace {

// Tokens of prompts that a step needs to tell what one costs, and those that it may have to tell what the
// others cost.
constexpr uint32_t kTellingTokens = 16, kFewTokens = 32;
// The weight of a new measurement of a prompt token.
constexpr double kPromptWeight = 0.1;
// A step that took so many times what it should says only that it took long.
constexpr double kMostSurprise = 2;

}  // namespace

void StepCosts::Learn(const StepLoad& load, uint32_t drafted, double seconds) {
  const uint32_t own = load.decodes + drafted;
  if (own > 0 && load.others <= kFewTokens) {
    const double even = seconds * own / (own + load.others);
    curve_.Learn(own, std::max(seconds - load.others * prompt_seconds_, even));
  }
  if (load.others >= kTellingTokens) LearnPrompts(load, drafted, seconds);
}

void StepCosts::LearnPrompts(const StepLoad& load, uint32_t drafted, double seconds) {
  const double own = curve_.Seconds(load.decodes + drafted);
  const double most = kMostSurprise * (own + load.others * prompt_seconds_);
  const double told = knows_prompts_ ? std::min(seconds, most) : seconds;
  const double measured = std::max(told - own, 0.0) / load.others;
  prompt_seconds_ += (knows_prompts_ ? kPromptWeight : 1) * (measured - prompt_seconds_);
  knows_prompts_ = true;
}

// A step with many tokens of prompts would not tell it.
bool StepCosts::wants_plain_step(const StepLoad& load) const {
  return load.decodes > 0 && load.others <= kFewTokens && !curve_.is_fresh(load.decodes);
}

double StepCosts::ExtraSeconds(const StepLoad& load, uint32_t drafted) const {
  const double more = curve_.Seconds(load.decodes + drafted) - curve_.Seconds(load.decodes);
  return load.others == 0 ? more : std::max(more, drafted * prompt_seconds_);
}

double StepCosts::MeasuredExtraSeconds(const StepLoad& load, uint32_t drafted) const {
  return std::max(ExtraSeconds(load, drafted),
                  curve_.Measured(load.decodes + drafted) - curve_.Seconds(load.decodes));
}

}  // namespace terrace
