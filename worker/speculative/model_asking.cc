#include "worker/speculative/model_asking.h"

#include <algorithm>

namespace terrace {
namespace {

// More is missing than was drafted and accepted, or drafted for others meanwhile.
constexpr uint32_t kBehindTokens = 16;
// Over so many tokens of the answer what a model has to catch up on is written off.
constexpr double kWriteOffTokens = 64;

// What is decided by what is believed: which drafts to make; or whom to read for, by what was measured: to
// see whether costs have changed, drafts of those are enough that are read already.
enum class Purpose : uint8_t { kDraft, kRead };

// Of a step whose drafts are still to be made.
class DraftingBill : public StepBill {
 public:
  DraftingBill(const DraftableStep& step, const PassCosts& passes, Purpose purpose)
      : step_(step),
        plain_(step.seconds()),
        passes_(passes),
        purpose_(purpose),
        pass_tokens_(step.max_tokens, 0.0) {}

  double Add(const DraftCandidate& candidate, uint32_t index) override {
    double& pass = pass_tokens_[index];
    if (pass > 0) drafting_ -= passes_.Seconds(pass);
    pass += 1;
    drafting_ += passes_.Seconds(pass);
    if (index == 0 && candidate.missing > 1)
      drafting_ +=
          passes_.ReadSeconds(candidate.missing) / std::clamp<double>(candidate.left, 1, kWriteOffTokens);
    return plain_ + ExtraSeconds(++tokens_) + drafting_;
  }

 private:
  double ExtraSeconds(uint32_t tokens) const {
    return purpose_ == Purpose::kRead ? step_.costs->MeasuredExtraSeconds(step_.load, tokens)
                                      : step_.costs->ExtraSeconds(step_.load, tokens);
  }

  const DraftableStep& step_;  // outlives this, like the costs
  const double plain_;         // seconds of the step without drafts
  const PassCosts& passes_;
  const Purpose purpose_;
  std::vector<double> pass_tokens_;  // that the drafter's model computes, by pass
  uint32_t tokens_ = 0;              // drafted
  double drafting_ = 0;              // seconds
};

}  // namespace

std::vector<uint32_t> ModelAsking::Ask(const DraftableStep& step,
                                       std::span<const DraftCandidate> candidates) {
  DraftingBill bill(step, costs_, Purpose::kDraft);
  std::vector<uint32_t> lengths = BestLengths(step, WorthReading(step, candidates), bill);
  prober_.Probe(costs_, candidates, lengths);
  return lengths;
}

// Without those that are not worth what has to be read for them: they have no `most`.
std::vector<DraftCandidate> ModelAsking::WorthReading(const DraftableStep& step,
                                                      std::span<const DraftCandidate> candidates) const {
  std::vector<DraftCandidate> worth(candidates.begin(), candidates.end());
  const auto is_behind = [](const DraftCandidate& candidate) { return candidate.missing > kBehindTokens; };
  if (std::ranges::none_of(worth, is_behind)) return worth;
  DraftingBill bill(step, costs_, Purpose::kRead);
  const std::vector<uint32_t> lengths = BestLengths(step, candidates, bill);
  for (size_t i = 0; i < worth.size(); ++i)
    if (is_behind(worth[i]) && lengths[i] == 0) worth[i].most = 0;
  return worth;
}

}  // namespace terrace
