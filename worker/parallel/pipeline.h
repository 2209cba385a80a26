// How a step passes the stages of a pipeline (Huang et al., "GPipe: Efficient Training of Giant Neural
// Networks using Pipeline Parallelism", 2019): its tokens are cut into micro-batches, and in tick t stage s
// has micro-batch t - s, if there is one, so that stages work at once. Pure.
//   tick     0  1  2  3  4
//   stage 0  a  b  c  .  .
//   stage 1  .  a  b  c  .
//   stage 2  .  .  a  b  c
#pragma once

#include <cstddef>
#include <optional>

#include "worker/parallel/index_range.h"

namespace terrace {

// So many tokens take about as long to compute as the weights take to read, which each micro-batch does anew.
inline constexpr size_t kTokensOfAWeightRead = 16;

// Into how many micro-batches `tokens` (at least 1) are cut: 1 to `tokens`, always 1 for one stage. With m of
// them a step takes m + stages - 1 ticks, each as long as reading a stage's weights (r) and computing
// tokens / m tokens (c each): least at m = sqrt((stages - 1) * tokens * c / r).
constexpr size_t MicroBatchesOf(size_t tokens, size_t stages) {
  size_t count = 1;
  while ((count + 1) * (count + 1) * kTokensOfAWeightRead <= (stages - 1) * tokens) ++count;
  return count;
}

class MicroBatches {
 public:
  MicroBatches(size_t tokens, size_t stages)
      : tokens_(tokens), stages_(stages), count_(MicroBatchesOf(tokens, stages)) {}

  size_t ticks() const { return count_ + stages_ - 1; }
  // The tokens that stage `stage` computes in a tick; nothing when it has none.
  std::optional<IndexRange> At(size_t tick, size_t stage) const {
    if (tick < stage || tick - stage >= count_) return std::nullopt;
    return ShareOf(tokens_, tick - stage, count_);
  }

 private:
  const size_t tokens_, stages_, count_;
};

}  // namespace terrace
