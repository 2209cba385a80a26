// Asks a drafter that is a model: for as much as gives the most tokens of answers a second (BestLengths),
// with the passes of that model in the bill and, written off over what an answer is expected to get still,
// what it has to read first. A Prober looks at those who would get nothing.
//
// How long an answer will be nobody knows: what it may get still is a limit that few reach. So it is expected
// to get as much as answers had lately.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/speculative/asking.h"
#include "worker/speculative/pass_costs.h"
#include "worker/speculative/prober.h"

namespace terrace {

class ModelAsking : public Asking {
 public:
  // `max_pass_tokens`: see Drafter. `probe_share`: of the time of all steps, with all that is read for it.
  ModelAsking(uint32_t max_pass_tokens, double probe_share) : costs_(max_pass_tokens), prober_(probe_share) {}

  bool WantsDrafts() override { return true; }  // Ask weighs what a call takes
  std::vector<uint32_t> Ask(const DraftableStep& step, std::span<const DraftCandidate> candidates) override;
  void LearnStep(double seconds) override { prober_.Earn(seconds); }
  void LearnDrafting(std::span<const uint32_t> passes, double seconds) override {
    costs_.Learn(passes, seconds);
  }
  void LearnAsking(double, double) override {}
  void LearnAnswer(uint32_t tokens) override;

 private:
  std::vector<DraftCandidate> WorthReading(const DraftableStep& step,
                                           std::span<const DraftCandidate> candidates) const;

  // Over so many tokens of the answer at most what a model has to catch up on is written off.
  static constexpr double kWriteOffTokens = 64;

  PassCosts costs_;
  Prober prober_;
  double answer_tokens_ = kWriteOffTokens;  // of an answer lately, of longer ones those
};

}  // namespace terrace
