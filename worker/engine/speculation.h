// Drafts of the engine's own, from plan to outcome: asks the drafter, offers to the Scheduler what is worth
// verifying, and learns from what steps took and what was accepted. Owned by the Engine; its loop thread
// only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "worker/engine/executor.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/speculation_stats.h"
#include "worker/speculative/draft_controller.h"
#include "worker/speculative/drafter.h"

namespace terrace {

class Speculation {
 public:
  // See DraftController.
  struct Options {
    uint32_t max_tokens = 8, max_branch_tokens = 0;
    bool adapts = true;
  };

  // Without a drafter it does nothing. `on_failed` is told of the error that ended the drafter.
  Speculation(const Options& options, std::unique_ptr<Drafter> drafter,
              std::function<void(const Status&)> on_failed, const Clock& clock);

  // Between Schedule and Run: drafts go with the plan where they are expected to pay. Also of an empty plan:
  // the drafter is told of sequences that have ended.
  void Draft(Scheduler& scheduler, StepPlan& plan);
  // After Commit. The plan was computed in `seconds`; none where that says nothing of plans like it.
  void Learn(Scheduler& scheduler, std::optional<double> seconds);

  const SpeculationStats& stats() const { return stats_; }

 private:
  bool Ask(Scheduler& scheduler, StepPlan& plan);
  void Offer(std::span<const DraftWish> wishes, std::vector<DraftCandidate> candidates,
             std::span<const uint32_t> asked, const Drafts& drafts, Scheduler& scheduler, StepPlan& plan);
  void ForgetEnded(Scheduler& scheduler);
  void Drop(const Status& error);
  void CountProposed(size_t draft, size_t branch);
  uint32_t Count(const DraftOutcome& outcome);

  const uint32_t max_branch_tokens_;
  std::unique_ptr<Drafter> drafter_;  // null: none, or it has failed
  const std::function<void(const Status&)> on_failed_;
  const Clock& clock_;  // outlives this
  DraftController controller_;
  SpeculationStats stats_;

  // Of the step between Draft and Learn.
  StepLoad load_;
  bool was_weighed_ = false;
  uint32_t verified_ = 0;  // tokens that drafts and branches add to it
  double drafting_seconds_ = 0;
  std::optional<MonoTime> turn_end_;  // of the last step, where the engine has had work since
};

}  // namespace terrace
