// The Executor of a real model on this process's threads: plan -> Batch -> Transformer -> Sampler. Owned by
// the Engine, or by its drafter, and used by its loop thread only; borrows the threads and the weights it was
// made from.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/op_table.h"
#include "worker/engine/executor.h"
#include "worker/kv/kv_pool.h"
#include "worker/model/transformer.h"
#include "worker/sample/sampler.h"

namespace terrace {

class ModelRunner : public Executor {
 public:
  // `transformer` was loaded with `pool`, and it and what it borrows outlive the runner. Errors of
  // KvPool::Create.
  static StatusOr<std::unique_ptr<ModelRunner>> Create(ThreadPool& pool,
                                                       std::unique_ptr<Transformer> transformer,
                                                       const OpTable& ops, const KvShape& kv_shape);

  StepResult Run(const StepPlan& plan) override;

  const Transformer& transformer() const { return *transformer_; }

 private:
  ModelRunner(ThreadPool& pool, std::unique_ptr<Transformer> transformer, std::unique_ptr<KvPool> kv,
              const OpTable& ops)
      : pool_(pool),
        kv_(std::move(kv)),
        transformer_(std::move(transformer)),
        samplers_(pool.threads(), Sampler(ops)) {}
  double Transfer(const std::vector<BlockTransfer>& transfers);
  SequenceOutput Choose(const PlannedSequence& planned, std::span<const float> logits,
                        Sampler& sampler) const;

  ThreadPool& pool_;
  std::unique_ptr<KvPool> kv_;
  std::unique_ptr<Transformer> transformer_;
  std::vector<Sampler> samplers_;  // as many as can be at work at once
};

}  // namespace terrace
