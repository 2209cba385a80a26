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

Speculation::Speculation(const Options& options, std::unique_ptr<Drafter> drafter,
                         std::function<void(const Status&)> on_failed, const Clock& clock)
    : max_branch_tokens_(options.max_branch_tokens),
      drafter_(std::move(drafter)),
      on_failed_(std::move(on_failed)),
      clock_(clock),
      controller_({.max_tokens = options.max_tokens,
                   .max_branch_tokens = options.max_branch_tokens,
                   .is_drafting_cheap = drafter_ != nullptr && drafter_->is_cheap(),
                   .max_pass_tokens = drafter_ != nullptr ? drafter_->max_pass_tokens() : 1,
                   .adapts = options.adapts}) {
  if (drafter_ != nullptr) stats_.drafter = drafter_->name();
}

void Speculation::Draft(Scheduler& scheduler, StepPlan& plan) {
  if (drafter_ == nullptr) return;
  const MonoTime begin = clock_.Now();
  if (plan.empty()) turn_end_.reset();  // what comes is waited for
  load_ = LoadOf(plan);
  verified_ = 0;
  ForgetEnded(scheduler);
  was_weighed_ = Ask(scheduler, plan);
  drafting_seconds_ = Seconds(clock_.Now() - begin);
  stats_.drafting_seconds += drafting_seconds_;
}

// Whether it was weighed what to ask the drafter for, which takes time even where that is nothing.
bool Speculation::Ask(Scheduler& scheduler, StepPlan& plan) {
  if (load_.decodes == 0 || scheduler.draft_room() == 0) return false;
  const std::vector<DraftWish> wishes = scheduler.Wishes(plan);
  if (wishes.empty() || !controller_.WantsDrafts(load_)) return false;
  std::vector<DraftCandidate> candidates;
  for (const DraftWish& wish : wishes) {
    const std::optional<uint32_t> missing = drafter_->MissingTokens(wish.request);
    candidates.push_back({.id = wish.request.id,
                          .most = missing.has_value() ? wish.request.most : 0,
                          .missing = missing.value_or(0),
                          .left = wish.left,
                          .acceptance = wish.acceptance,
                          .branch = wish.branch});
  }
  const std::vector<uint32_t> asked = controller_.Ask(load_, candidates, scheduler.draft_room());
  const bool has_places = plan.sequences.size() < scheduler.options().max_sequences;
  std::vector<DraftRequest> requests;
  for (size_t i = 0; i < wishes.size(); ++i) {
    if (asked[i] == 0) continue;
    requests.push_back(wishes[i].request);
    requests.back().most = asked[i];
    requests.back().most_branch = has_places ? max_branch_tokens_ : 0;
  }
  if (requests.empty()) return true;

  const MonoTime begin = clock_.Now();
  StatusOr<Drafts> drafts = drafter_->Propose(requests);
  if (!drafts.ok()) {
    Drop(drafts.status());
    return true;
  }
  CHECK(drafts->tokens.size() == requests.size());
  CHECK(drafts->branches.empty() || drafts->branches.size() == requests.size());
  controller_.LearnDrafting(drafts->passes, Seconds(clock_.Now() - begin));
  Offer(wishes, std::move(candidates), asked, *drafts, scheduler, plan);
  return true;
}

// What of the drafts is worth verifying, of those that were asked for. A branch takes a place in the step:
// the first ones have what places there are.
void Speculation::Offer(std::span<const DraftWish> wishes, std::vector<DraftCandidate> candidates,
                        std::span<const uint32_t> asked, const Drafts& drafts, Scheduler& scheduler,
                        StepPlan& plan) {
  std::vector<std::span<const int32_t>> drafted(wishes.size()), branches(wishes.size());
  const size_t parts = plan.sequences.size(), most_parts = scheduler.options().max_sequences;
  size_t places = most_parts - std::min(parts, most_parts);
  const auto first = [](std::span<const int32_t> tokens, uint32_t most) {
    return tokens.first(std::min<size_t>(tokens.size(), most));
  };
  for (size_t i = 0, next = 0; i < wishes.size(); ++i) {
    candidates[i].most = 0;
    if (asked[i] == 0) continue;
    drafted[i] = first(drafts.tokens[next], asked[i]);
    if (!drafts.branches.empty()) branches[i] = first(drafts.branches[next], max_branch_tokens_);
    ++next;
    CountProposed(drafted[i].size(), branches[i].size());
    candidates[i].most = static_cast<uint32_t>(drafted[i].size());
    if (drafted[i].empty() || branches[i].empty() || places == 0) continue;
    candidates[i].most_branch = static_cast<uint32_t>(first(branches[i], wishes[i].request.most).size());
    --places;
  }
  const DraftLengths lengths = controller_.Verify(load_, candidates, scheduler.draft_room());
  for (size_t i = 0; i < wishes.size(); ++i) {
    if (!drafted[i].empty())
      verified_ += scheduler.Offer(plan, wishes[i].part, drafted[i], lengths.chains[i]);
  }
  for (size_t i = 0; i < wishes.size(); ++i) {
    if (!branches[i].empty())
      verified_ += scheduler.OfferBranch(plan, wishes[i].part, branches[i], lengths.branches[i]);
  }
}

void Speculation::Learn(Scheduler& scheduler, std::optional<double> seconds) {
  if (stats_.drafter.empty()) return;
  uint32_t gained = 0;
  for (const DraftOutcome& outcome : scheduler.TakeDraftOutcomes()) {
    controller_.LearnOutcome(outcome.compared, outcome.accepted);
    if (outcome.branch.compared > 0) controller_.LearnBranch(outcome.branch.accepted > 0);
    gained += Count(outcome);
  }
  if (drafter_ == nullptr) return;
  ForgetEnded(scheduler);
  if (seconds.has_value()) controller_.LearnStep(load_, verified_, *seconds);
  if (load_.decodes == 0) return turn_end_.reset();
  const double seconds_per_token = controller_.StepSeconds(load_.decodes) / load_.decodes;
  const double saved = gained * seconds_per_token - controller_.ExtraSeconds(load_, verified_);
  stats_.saved_seconds += saved - drafting_seconds_;
  const MonoTime now = clock_.Now();
  DraftedTurn turn{.was_weighed = was_weighed_,
                   .tells_costs = seconds.has_value(),
                   .asking = drafting_seconds_,
                   .saved = saved,
                   .gained = gained};
  if (turn_end_.has_value()) turn.seconds = Seconds(now - *turn_end_);
  controller_.LearnTurn(load_, turn);
  turn_end_.reset();
  if (!scheduler.idle()) turn_end_ = now;  // else what comes is waited for
}

void Speculation::ForgetEnded(Scheduler& scheduler) {
  for (const EndedDrafted& ended : scheduler.TakeEndedDrafted()) {
    controller_.LearnAnswer(ended.tokens);
    drafter_->Forget(ended.id);
  }
}

// The streams go on without.
void Speculation::Drop(const Status& error) {
  drafter_.reset();
  ++stats_.failures;
  if (on_failed_) on_failed_(error);
}

void Speculation::CountProposed(size_t draft, size_t branch) {
  for (size_t i = 0; i < draft; ++i)
    ++stats_.proposed[SpeculationStats::PositionOf(static_cast<uint32_t>(i))];
  stats_.branch_proposed += branch;
}

// Tokens that the draft gave.
uint32_t Speculation::Count(const DraftOutcome& outcome) {
  if (outcome.verified == 0) return 0;
  ++stats_.passes;
  for (uint32_t i = 0; i < outcome.verified; ++i) {
    ++stats_.verified[SpeculationStats::PositionOf(i)];
    stats_.accepted[SpeculationStats::PositionOf(i)] += i < outcome.accepted ? 1 : 0;
  }
  stats_.branch_verified += outcome.branch.verified;
  stats_.branch_accepted += outcome.branch.verified > 0 ? outcome.branch.accepted : 0;
  return outcome.gained;
}

}  // namespace terrace
