#include "worker/speculative/draft_controller.h"

#include <algorithm>

#include "worker/speculative/cheap_asking.h"
#include "worker/speculative/model_asking.h"

namespace terrace {
namespace {

// A turn that took so many times what it should was a stall; the weight of a new one in what it should.
constexpr double kMostSurprise = 2, kExcessWeight = 1.0 / 16;

// Of a step whose drafts are there.
class VerifyingBill : public StepBill {
 public:
  explicit VerifyingBill(const DraftableStep& step) : step_(step), plain_(step.seconds()) {}

  double Add(const DraftCandidate&, uint32_t, double) override {
    return plain_ + step_.costs->ExtraSeconds(step_.load, ++tokens_);
  }

 private:
  const DraftableStep& step_;  // outlives this
  const double plain_;         // seconds of the step without drafts
  uint32_t tokens_ = 0;
};

std::unique_ptr<Asking> MakeAsking(const DraftController::Options& options) {
  if (options.is_drafting_cheap) return std::make_unique<CheapAsking>(options.probe_share);
  return std::make_unique<ModelAsking>(options.max_pass_tokens, options.probe_share);
}

}  // namespace

DraftController::DraftController(const Options& options)
    : max_tokens_(options.max_tokens),
      max_branch_tokens_(options.max_branch_tokens),
      adapts_(options.adapts),
      asking_(MakeAsking(options)),
      balance_(2 * options.probe_share),  // so that probing alone never ends drafts
      plain_turns_(options.probe_share) {}

DraftableStep DraftController::StepOf(const StepLoad& load, uint32_t room) const {
  return {.load = load,
          .room = room,
          .max_tokens = max_tokens_,
          .prior = prior(),
          .branch_prior = branch_acceptance_.Rate(kBranchPrior),
          .costs = &costs_};
}

// Those that come first take the room.
std::vector<uint32_t> DraftController::FullLengths(std::span<const DraftCandidate> candidates,
                                                   uint32_t room) const {
  std::vector<uint32_t> lengths;
  for (const DraftCandidate& candidate : candidates) {
    lengths.push_back(std::min({candidate.most, max_tokens_, room}));
    room -= lengths.back();
  }
  return lengths;
}

// Branches have what drafts leave.
DraftLengths DraftController::FullTrees(std::span<const DraftCandidate> candidates, uint32_t room) const {
  DraftLengths lengths{.chains = FullLengths(candidates, room)};
  room -= lengths.tokens();
  for (size_t i = 0; i < candidates.size(); ++i) {
    const uint32_t most = std::min(candidates[i].most_branch, max_branch_tokens_);
    const bool has_room = lengths.chains[i] > 0 && room > 1;
    lengths.branches.push_back(has_room ? std::min(most, room - 1) : 0);
    room -= lengths.branches.back() > 0 ? lengths.branches.back() + 1 : 0;
  }
  return lengths;
}

std::vector<uint32_t> DraftController::Ask(const StepLoad& load, std::span<const DraftCandidate> candidates,
                                           uint32_t room) {
  return adapts_ ? asking_->Ask(StepOf(load, room), candidates) : FullLengths(candidates, room);
}

DraftLengths DraftController::Verify(const StepLoad& load, std::span<const DraftCandidate> candidates,
                                     uint32_t room) const {
  if (!adapts_) return FullTrees(candidates, room);
  const DraftableStep step = StepOf(load, room);
  VerifyingBill bill(step);
  return BestTrees(step, candidates, BestLengths(step, candidates, bill));
}

void DraftController::LearnStep(const StepLoad& load, uint32_t drafted, double seconds) {
  costs_.Learn(load, drafted, seconds);
  asking_->LearnStep(seconds);
  if (load.decodes > 0) balance_.Earn(load.decodes, seconds, costs_.Seconds(load.decodes));
}

void DraftController::LearnTurn(const StepLoad& load, const DraftedTurn& turn) {
  plain_turns_.Count(turn.was_weighed);
  if (!turn.tells_costs) return;
  if (turn.was_weighed) asking_->LearnAsking(turn.asking, turn.saved);
  const double step = costs_.Seconds(load.decodes);
  const bool is_alone = turn.seconds.has_value() && load.others == 0;
  if (is_alone) plain_turns_.Learn(load.decodes, *turn.seconds, step);
  if (plain_turns_.is_plain()) return;
  const double known = is_alone ? plain_turns_.Seconds(load.decodes, costs_) : 0;
  const double plain = known > 0 ? known : step;
  const double worth = plain * (load.decodes + turn.gained) / load.decodes;
  double gain = turn.was_weighed ? turn.saved - turn.asking : 0;
  if (known > 0) gain = worth - turn.asking - WithoutStalls(*turn.seconds - turn.asking, worth - turn.saved);
  balance_.Settle(load.decodes, gain);
  if (is_alone && turn.was_weighed && worth > 0) plain_turns_.LearnGain(load.decodes, plain, gain / worth);
}

// A turn that took much longer than others of its kind did lately, by what they are believed to take, was a
// stall; where all do, that is what they take.
double DraftController::WithoutStalls(double seconds, double believed) {
  if (!(believed > 0)) return seconds;
  const double ratio = std::min(seconds / believed, kMostSurprise * std::max(excess_, 1.0));
  excess_ += kExcessWeight * (ratio - excess_);
  return ratio * believed;
}

}  // namespace terrace
