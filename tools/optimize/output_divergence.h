// How far apart the next-token distributions are that two residual streams end in. Memory: a thousand rows of
// the output matrix in f32, and 48 bytes for each token of each stream. The same bits for any number of
// threads, on one kind of processor. One thread at a time.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/op_table.h"
#include "kernels/weight_matrix.h"
#include "tools/optimize/hidden_states.h"

namespace terrace {

class OutputDivergence {
 public:
  // `norm`, [hidden], is the model's last, `output`, [vocabulary, hidden], its output matrix, which `ops` and
  // `pool` as well outlive the object; `softcap` is ModelConfig's logit_softcap.
  OutputDivergence(std::vector<float> norm, float norm_epsilon, float softcap, const WeightMatrix& output,
                   const OpTable& ops, ThreadPool& pool)
      : norm_(std::move(norm)),
        norm_epsilon_(norm_epsilon),
        softcap_(softcap),
        output_(output),
        ops_(ops),
        pool_(pool) {}

  // For each of `streams` the Kullback-Leibler divergence KL(reference || stream), the mean over the tokens,
  // in nats. All are what comes out of the last layer. DATA_LOSS, reason nonfinite, where a logit is infinite
  // or not a number; RESOURCE_EXHAUSTED for memory; the errors of HiddenStates.
  StatusOr<std::vector<double>> Measure(const HiddenStates& reference,
                                        std::span<const HiddenStates> streams) const;

 private:
  const std::vector<float> norm_;
  const float norm_epsilon_, softcap_;
  const WeightMatrix output_;
  const OpTable& ops_;
  ThreadPool& pool_;
};

}  // namespace terrace
