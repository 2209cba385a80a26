#include "worker/engine/speculation.h"

#include <algorithm>

namespace terrace {
namespace {

StepLoad LoadOf(const StepPlan& plan) {
  StepLoad load;
  for (const PlannedSequence& part : plan.sequences) {
    const uint32_t decoded = part.is_decode ? 1 : 0;
    load.decodes += decoded;
    load.others += static_cast<uint32_t>(part.tokens.size()) - decoded;
  }
  return load;
}

}  // namespace

Speculation::Speculation(uint32_t max_tokens, bool adapts, std::unique_ptr<Drafter> drafter,
                         std::function<void(const Status&)> on_failed, const Clock& clock)
    : drafter_(std::move(drafter)),
      on_failed_(std::move(on_failed)),
      clock_(clock),
      controller_({.max_tokens = max_tokens,
                   .is_drafting_cheap = drafter_ != nullptr && drafter_->is_cheap(),
                   .max_pass_tokens = drafter_ != nullptr ? drafter_->max_pass_tokens() : 1,
                   .adapts = adapts}) {
  if (drafter_ != nullptr) stats_.drafter = drafter_->name();
}

void Speculation::Draft(Scheduler& scheduler, StepPlan& plan) {
  if (drafter_ == nullptr) return;
  const MonoTime begin = clock_.Now();
  load_ = LoadOf(plan);
  verified_ = 0;
  ForgetEnded(scheduler);
  was_asked_ = Ask(scheduler, plan);
  drafting_seconds_ = Seconds(clock_.Now() - begin);
  stats_.drafting_seconds += drafting_seconds_;
}

// Whether the drafter was asked.
bool Speculation::Ask(Scheduler& scheduler, StepPlan& plan) {
  if (load_.decodes == 0 || scheduler.draft_room() == 0) return false;
  const std::vector<DraftWish> wishes = scheduler.Wishes(plan);
  if (wishes.empty() || !controller_.WantsDrafts()) return false;
  std::vector<DraftCandidate> candidates;
  for (const DraftWish& wish : wishes) {
    const std::optional<uint32_t> missing = drafter_->MissingTokens(wish.request);
    candidates.push_back({.id = wish.request.id,
                          .most = missing.has_value() ? wish.request.most : 0,
                          .missing = missing.value_or(0),
                          .left = wish.left,
                          .acceptance = wish.acceptance});
  }
  const uint32_t room = scheduler.draft_room();
  const std::vector<uint32_t> asked = controller_.Ask(load_, candidates, room);
  std::vector<DraftRequest> requests;
  for (size_t i = 0; i < wishes.size(); ++i) {
    candidates[i].most = 0;  // until it has a draft
    if (asked[i] == 0) continue;
    requests.push_back(wishes[i].request);
    requests.back().most = asked[i];
  }
  if (requests.empty()) return false;

  const MonoTime begin = clock_.Now();
  StatusOr<Drafts> drafts = drafter_->Propose(requests);
  if (!drafts.ok()) {
    Drop(drafts.status());
    return true;
  }
  CHECK(drafts->tokens.size() == requests.size());
  controller_.LearnDrafting(drafts->passes, Seconds(clock_.Now() - begin));

  std::vector<std::span<const int32_t>> drafted(wishes.size());
  for (size_t i = 0, next = 0; i < wishes.size(); ++i) {
    if (asked[i] == 0) continue;
    const std::vector<int32_t>& draft = drafts->tokens[next++];
    drafted[i] = std::span(draft).first(std::min<size_t>(draft.size(), asked[i]));
    candidates[i].most = static_cast<uint32_t>(drafted[i].size());
  }
  const std::vector<uint32_t> lengths = controller_.Verify(load_, candidates, room);
  for (size_t i = 0; i < wishes.size(); ++i) {
    if (!drafted[i].empty()) verified_ += scheduler.Offer(plan, wishes[i].part, drafted[i], lengths[i]);
  }
  return true;
}

void Speculation::Learn(Scheduler& scheduler, std::optional<double> seconds) {
  if (stats_.drafter.empty()) return;
  uint32_t gained = 0;
  for (const DraftOutcome& outcome : scheduler.TakeDraftOutcomes()) {
    controller_.LearnOutcome(outcome.compared, outcome.accepted);
    gained += Count(outcome);
  }
  if (drafter_ == nullptr) return;
  ForgetEnded(scheduler);
  if (seconds.has_value()) controller_.LearnStep(load_, verified_, *seconds);
  if (load_.decodes == 0) return;
  const double seconds_per_token = controller_.StepSeconds(load_.decodes) / load_.decodes;
  const double saved = gained * seconds_per_token - controller_.ExtraSeconds(load_, verified_);
  stats_.saved_seconds += saved - drafting_seconds_;
  if (was_asked_ && seconds.has_value()) controller_.LearnAsking(drafting_seconds_, saved);
}

void Speculation::ForgetEnded(Scheduler& scheduler) {
  for (const uint64_t id : scheduler.TakeEndedDrafted()) drafter_->Forget(id);
}

// The streams go on without.
void Speculation::Drop(const Status& error) {
  drafter_.reset();
  ++stats_.failures;
  if (on_failed_) on_failed_(error);
}

// Tokens that the draft gave.
uint32_t Speculation::Count(const DraftOutcome& outcome) {
  if (outcome.verified == 0) return 0;
  ++stats_.passes;
  for (uint32_t i = 0; i < outcome.verified; ++i) {
    ++stats_.verified[SpeculationStats::PositionOf(i)];
    stats_.accepted[SpeculationStats::PositionOf(i)] += i < outcome.accepted ? 1 : 0;
  }
  return outcome.gained;
}

}  // namespace terrace
