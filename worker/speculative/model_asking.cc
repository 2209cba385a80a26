#include "worker/speculative/model_asking.h"

#include <algorithm>

namespace terrace {
namespace {

// More is missing than was drafted and accepted, or drafted for others meanwhile.
constexpr uint32_t kBehindTokens = 16;
// Of a sequence whose last draft was right to its end, and less of others, so many are missing: the first
// pass computes them every time.
constexpr uint32_t kCaughtUpTokens = 2;
// The weight of a new answer's length.
constexpr double kAnswerWeight = 0.05;

// What is decided by what is believed: which drafts to make; or whom to read for, by what was measured: to
// see whether costs have changed, drafts of those are enough that are read already.
enum class Purpose : uint8_t { kDraft, kRead };

// Of a step whose drafts are still to be made.
class DraftingBill : public StepBill {
 public:
  // `answer_tokens`: that an answer is expected to get still, if it may.
  DraftingBill(const DraftableStep& step, const PassCosts& passes, double answer_tokens, Purpose purpose)
      : step_(step),
        plain_(step.seconds()),
        passes_(passes),
        answer_tokens_(answer_tokens),
        purpose_(purpose),
        passes_so_far_(step.max_tokens) {}

  double Add(const DraftCandidate& candidate, uint32_t index, double worth) override {
    Pass& pass = passes_so_far_[index];
    drafting_ -= pass.seconds;
    const bool is_caught_up = candidate.missing <= kCaughtUpTokens;
    pass.tokens += index == 0 && is_caught_up ? candidate.missing : 1;
    pass.seconds = passes_.Seconds(pass.tokens);
    drafting_ += pass.seconds;
    if (!is_caught_up) drafting_ += ReadShare(candidate, index == 0 ? 1 + worth : worth);
    return plain_ + ExtraSeconds(++tokens_) + drafting_;
  }

 private:
  struct Pass {
    uint32_t tokens = 0;  // that the drafter's model computes
    double seconds = 0;
  };

  // What so many tokens of the answer bear of what has to be read for them.
  double ReadShare(const DraftCandidate& candidate, double tokens) const {
    const double left = std::max(std::min<double>(candidate.left, answer_tokens_), 1.0);
    return passes_.ReadSeconds(candidate.missing) * tokens / left;
  }

  double ExtraSeconds(uint32_t tokens) const {
    return purpose_ == Purpose::kRead ? step_.costs->MeasuredExtraSeconds(step_.load, tokens)
                                      : step_.costs->ExtraSeconds(step_.load, tokens);
  }

  const DraftableStep& step_;  // outlives this, like the costs
  const double plain_;         // seconds of the step without drafts
  const PassCosts& passes_;
  const double answer_tokens_;
  const Purpose purpose_;
  std::vector<Pass> passes_so_far_;
  uint32_t tokens_ = 0;  // drafted
  double drafting_ = 0;  // seconds
};

}  // namespace

std::vector<uint32_t> ModelAsking::Ask(const DraftableStep& step,
                                       std::span<const DraftCandidate> candidates) {
  DraftingBill bill(step, costs_, answer_tokens_, Purpose::kDraft);
  std::vector<uint32_t> lengths = BestLengths(step, WorthReading(step, candidates), bill);
  prober_.Probe(costs_, candidates, lengths);
  return lengths;
}

void ModelAsking::LearnAnswer(uint32_t tokens) {
  answer_tokens_ += kAnswerWeight * (std::min<double>(tokens, kWriteOffTokens) - answer_tokens_);
}

// Without those that are not worth what has to be read for them: they have no `most`.
std::vector<DraftCandidate> ModelAsking::WorthReading(const DraftableStep& step,
                                                      std::span<const DraftCandidate> candidates) const {
  std::vector<DraftCandidate> worth(candidates.begin(), candidates.end());
  const auto is_behind = [](const DraftCandidate& candidate) { return candidate.missing > kBehindTokens; };
  if (std::ranges::none_of(worth, is_behind)) return worth;
  DraftingBill bill(step, costs_, answer_tokens_, Purpose::kRead);
  const std::vector<uint32_t> lengths = BestLengths(step, candidates, bill);
  for (size_t i = 0; i < worth.size(); ++i)
    if (is_behind(worth[i]) && lengths[i] == 0) worth[i].most = 0;
  return worth;
}

}  // namespace terrace
