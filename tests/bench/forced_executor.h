// The Executor of a drafter's model whose tokens are others than the model chose: what its passes take is the
// model's, and how often they are right is set. Owned by the drafter; one thread.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "worker/engine/executor.h"

namespace terrace {

class ForcedExecutor : public Executor {
 public:
  using ChooseFor = std::function<int32_t(const PlannedSequence& part)>;

  ForcedExecutor(std::unique_ptr<Executor> model, ChooseFor choose)
      : model_(std::move(model)), choose_(std::move(choose)) {}

  StepResult Run(const StepPlan& plan) override {
    StepResult result = model_->Run(plan);
    for (size_t i = 0; i < result.outputs.size(); ++i) {
      if (!result.outputs[i].tokens.empty()) result.outputs[i].tokens[0].token = choose_(plan.sequences[i]);
    }
    return result;
  }

 private:
  const std::unique_ptr<Executor> model_;
  const ChooseFor choose_;
};

}  // namespace terrace
