// Drafts of the engine's own, from plan to outcome: asks the drafter, offers to the Scheduler what is worth
// verifying, and learns from what steps took and what was accepted. Owned by the Engine; its loop thread
// only.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "worker/engine/executor.h"
#include "worker/engine/scheduler.h"
#include "worker/speculative/draft_controller.h"
#include "worker/speculative/drafter.h"

namespace terrace {

// Since the start.
struct SpeculationStats {
  // Positions in a draft: 1, 2, 3, 4, 5 to 8, later ones.
  static constexpr size_t kPositions = 6;
  static constexpr size_t PositionOf(uint32_t index) { return index < 4 ? index : index < 8 ? 4 : 5; }

  std::string_view drafter = "";                            // its name, a literal; "": there is none
  std::array<uint64_t, kPositions> verified{}, accepted{};  // tokens
  // Of a sequence through the model with a draft: each gives one token more than it accepts, but where the
  // answer ends.
  uint64_t passes = 0;
  uint64_t failures = 0;  // of the drafter: after the first one there is none
  double drafting_seconds = 0;
  double saved_seconds = 0;  // as the cost curves have it; less than 0: lost
};

class Speculation {
 public:
  // Without a drafter it does nothing. `on_failed` is told of the error that ended the drafter.
  Speculation(uint32_t max_tokens, std::unique_ptr<Drafter> drafter,
              std::function<void(const Status&)> on_failed, const Clock& clock);

  // Between Schedule and Run: drafts go with the plan where they are expected to pay. Also of an empty plan:
  // the drafter is told of sequences that have ended.
  void Draft(Scheduler& scheduler, StepPlan& plan);
  // After Commit. The plan was computed in `seconds`.
  void Learn(Scheduler& scheduler, double seconds);

  const SpeculationStats& stats() const { return stats_; }

 private:
  bool Ask(Scheduler& scheduler, StepPlan& plan);
  void ForgetEnded(Scheduler& scheduler);
  void Drop(const Status& error);
  uint32_t Count(const DraftOutcome& outcome);

  std::unique_ptr<Drafter> drafter_;  // null: none, or it has failed
  const std::function<void(const Status&)> on_failed_;
  const Clock& clock_;  // outlives this
  DraftController controller_;
  SpeculationStats stats_;

  // Of the step between Draft and Learn.
  StepLoad load_;
  bool was_asked_ = false;
  uint32_t verified_ = 0;  // tokens
  double drafting_seconds_ = 0;
};

}  // namespace terrace
