#include "worker/speculative/cheap_asking.h"

#include <algorithm>

namespace terrace {
namespace {

// Steps that the drafter is asked in before it has to pay, and the weight of a new one then.
constexpr uint64_t kFreeSteps = 32;
constexpr double kAskingWeight = 0.05;
// Asking that took so many times what it should says only that it took long.
constexpr double kMostSurprise = 2;

}  // namespace

bool CheapAsking::WantsDrafts() {
  if (asked_steps_ < kFreeSteps || saved_seconds_ >= asking_seconds_) return true;
  return savings_.Pay(std::min(asking_seconds_, ProbeSavings::kMostSteps * step_seconds_));
}

std::vector<uint32_t> CheapAsking::Ask(const DraftableStep& step,
                                       std::span<const DraftCandidate> candidates) {
  std::vector<uint32_t> lengths;
  for (const DraftCandidate& candidate : candidates)
    lengths.push_back(std::min(candidate.most, step.max_tokens));
  return lengths;
}

void CheapAsking::LearnStep(double seconds) {
  savings_.Earn(seconds);
  step_seconds_ = seconds;
}

// One stall is not what asking takes.
void CheapAsking::LearnAsking(double asking, double saved) {
  const bool is_new = asked_steps_ < kFreeSteps;
  const double most = is_new ? step_seconds_ : kMostSurprise * asking_seconds_ + 1e-6;
  const double weight = std::max(kAskingWeight, 1 / static_cast<double>(++asked_steps_));
  asking_seconds_ += weight * (std::min(asking, most) - asking_seconds_);
  saved_seconds_ += weight * (saved - saved_seconds_);
}

}  // namespace terrace
