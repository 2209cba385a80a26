// The Executor of a CUDA device: plan -> Batch -> CudaTransformer, which chooses the tokens too. Owned by the
// Engine, or by a Follower, used by its loop thread only; borrows the model.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "worker/cuda/cuda_transformer.h"
#include "worker/engine/executor.h"
#include "worker/sample/sampler.h"

namespace terrace {

class CudaRunner : public Executor {
 public:
  // `device`: its number, on which the transformer is.
  CudaRunner(const ModelConfig& config, std::unique_ptr<CudaTransformer> transformer, int device)
      : config_(config), transformer_(std::move(transformer)), device_(device) {}

  // An error of the device is the result's device_error: the device cannot go on.
  StepResult Run(const StepPlan& plan) override;

 private:
  Status RunInto(const StepPlan& plan, StepResult& result);
  Status Transfer(const std::vector<BlockTransfer>& transfers);
  bool MakeRows(const StepPlan& plan, const Batch& batch);
  Status Step(const StepPlan& plan, const Batch& batch, bool scores, StepResult& result);
  SequenceOutput Output(const PlannedSequence& planned, std::span<const GpuSampleResult> chosen,
                        std::span<const float> logits);

  const ModelConfig config_;
  const std::unique_ptr<CudaTransformer> transformer_;
  const int device_;
  Sampler sampler_;  // of scores
  std::vector<GpuSampleRow> rows_;
  std::vector<GpuLogitAdjustment> adjustments_;
};

}  // namespace terrace
