// Asks a drafter whose drafts cost next to nothing (Drafter::is_cheap): for all that each sequence may have,
// as what is not verified costs nothing. But a step of a small model is not much longer than the asking, so
// even that is weighed: after some free steps it has to save as much as it takes, or what was saved up for
// looking (ProbeSavings) pays for it now and then.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/speculative/asking.h"
#include "worker/speculative/probe_savings.h"

namespace terrace {

class CheapAsking : public Asking {
 public:
  // `probe_share`: of the time of all steps, for asking where it does not pay.
  explicit CheapAsking(double probe_share) : savings_(probe_share) {}

  bool WantsDrafts() override;
  std::vector<uint32_t> Ask(const DraftableStep& step, std::span<const DraftCandidate> candidates) override;
  void LearnStep(double seconds) override;
  void LearnDrafting(std::span<const uint32_t>, double) override {}  // it is part of the asking
  void LearnAsking(double asking, double saved) override;
  void LearnAnswer(uint32_t) override {}

 private:
  ProbeSavings savings_;
  double step_seconds_ = 0;  // of the step last learned
  uint64_t asked_steps_ = 0;
  double asking_seconds_ = 0, saved_seconds_ = 0;  // of a step, lately
};

}  // namespace terrace
