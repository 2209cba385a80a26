// Steps of a group of ranks: its leader tells each plan to the others, and all run it, each on its part of
// the model (docs/adr/0009-tensor-parallelism.md). Everything goes over the group's Communicator, in an order
// that all know: a frame of the leader's, then what the step itself sends. While there is nothing to run the
// leader says so again and again: so a rank that is gone or stuck is missed within the communicator's
// timeout and an idle period or two, whether there is work or not.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "base/clock.h"
#include "base/status.h"
#include "worker/engine/executor.h"
#include "worker/engine/plan_codec.h"
#include "worker/parallel/communicator.h"

namespace terrace {

// The leader's Executor. Used by the Engine's loop thread; destroyed after it has stopped.
class GroupExecutor : public Executor {
 public:
  // `own` runs this rank's part, over the same communicator, which outlives both.
  GroupExecutor(Communicator& communicator, std::unique_ptr<Executor> own);
  ~GroupExecutor() override;  // tells the others that there is nothing more to come

  StepResult Run(const StepPlan& plan) override;
  std::optional<Duration> idle_period() const override { return idle_period_; }
  Status Idle() override;

 private:
  Communicator& communicator_;
  const std::unique_ptr<Executor> own_;
  const Duration idle_period_;
  PlanWriter writer_;
  MonoTime last_told_;
};

// Of the leader: an executor beside the group's that may take long, a drafter's model, while the others wait.
// Before and after each of its runs they are told that there is nothing to run yet. Used by the Engine's loop
// thread.
class ExecutorBesideGroup : public Executor {
 public:
  // `communicator`, the group's, outlives it.
  ExecutorBesideGroup(Communicator& communicator, std::unique_ptr<Executor> own);

  StepResult Run(const StepPlan& plan) override;

 private:
  void TellIdle();

  Communicator& communicator_;
  const std::unique_ptr<Executor> own_;
  const Duration least_gap_;
  MonoTime last_told_;
};

// The loop of every other rank, whose model has these limits. OK when the leader has told that nothing more
// is to come; else why the group is lost: errors of the communicator and of `own`, and CANCELLED when
// `is_stopped`, which is asked before each frame, says so. Then the communicator has ended.
Status FollowLeader(Communicator& communicator, Executor& own, const PlanLimits& limits,
                    const std::function<bool()>& is_stopped);

}  // namespace terrace
