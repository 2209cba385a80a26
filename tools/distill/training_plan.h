// Which rows are trained on in which step, and how fast: a pure function of sizes and a seed, so that the
// number of a step is all that a resumed run needs to know of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace terrace {

using MicroBatch =
    std::vector<uint32_t>;  // indices of rows that are in memory together, padded to the longest

struct TrainingStep {
  std::vector<MicroBatch> batches = {};
  uint64_t tokens = 0;  // of its rows
};

struct TrainingPlanOptions {
  uint64_t tokens = 0;         // of all steps, about; 0: each row once
  uint64_t batch_tokens = 0;   // of a step, about: its rows are as many as reach that. At least 1
  uint64_t memory_tokens = 0;  // of a micro-batch with its padding, at most, but for one row. At least 1
  uint64_t seed = 0;
};

// Every pass over the rows is in a new random order; `sizes` are the tokens of each of `rows`, which are not
// none. The rows of a step are sorted by size, for little padding.
std::vector<TrainingStep> PlanTraining(std::span<const uint32_t> rows, std::span<const size_t> sizes,
                                       const TrainingPlanOptions& options);

// The rows in their own order, in micro-batches.
std::vector<MicroBatch> SplitRows(std::span<const uint32_t> rows, std::span<const size_t> sizes,
                                  uint64_t memory_tokens);

// Rises in a line over `warmup` steps, then falls to a tenth along half a cosine (Loshchilov and Hutter,
// "SGDR", 2017).
double LearningRate(double highest, uint64_t step, uint64_t steps, uint64_t warmup);

}  // namespace terrace
