#include "tools/distill/training_plan.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/rng.h"
#include "base/shuffle.h"

namespace terrace {
namespace {

constexpr uint64_t kOrderStream = 1;  // of random numbers: the orders of rows
constexpr double kLastShare = 0.1;    // of the highest learning rate

}  // namespace

std::vector<MicroBatch> SplitRows(std::span<const uint32_t> rows, std::span<const size_t> sizes,
                                  uint64_t memory_tokens) {
  std::vector<MicroBatch> batches;
  size_t longest = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    longest = std::max(longest, sizes[i]);
    if (batches.empty() || (batches.back().size() + 1) * longest > memory_tokens) {
      batches.emplace_back();
      longest = sizes[i];
    }
    batches.back().push_back(rows[i]);
  }
  return batches;
}

std::vector<TrainingStep> PlanTraining(std::span<const uint32_t> rows, std::span<const size_t> sizes,
                                       const TrainingPlanOptions& options) {
  uint64_t of_all = 0;
  for (const size_t size : sizes) of_all += size;
  const uint64_t wanted = options.tokens == 0 ? of_all : options.tokens;

  std::vector<TrainingStep> steps;
  std::vector<size_t> taken;  // positions in `rows`: those of the step that is being filled
  uint64_t planned = 0, in_step = 0;
  const auto close = [&] {
    std::ranges::stable_sort(taken, {}, [&](size_t at) { return sizes[at]; });
    std::vector<uint32_t> indices;
    std::vector<size_t> their_sizes;
    for (const size_t at : taken) {
      indices.push_back(rows[at]);
      their_sizes.push_back(sizes[at]);
    }
    steps.push_back({SplitRows(indices, their_sizes, options.memory_tokens), in_step});
    taken.clear();
    in_step = 0;
  };
  for (uint64_t pass = 0; planned < wanted; ++pass) {
    for (const size_t at : ShuffledIndices(rows.size(), RandomBits(options.seed, pass, kOrderStream))) {
      if (planned >= wanted) break;
      taken.push_back(at);
      in_step += sizes[at];
      planned += sizes[at];
      if (in_step >= options.batch_tokens) close();
    }
  }
  if (!taken.empty()) close();
  return steps;
}

double LearningRate(double highest, uint64_t step, uint64_t steps, uint64_t warmup) {
  if (step < warmup) return highest * static_cast<double>(step + 1) / static_cast<double>(warmup);
  const double share =
      static_cast<double>(step - warmup) / static_cast<double>(std::max<uint64_t>(1, steps - warmup));
  return highest *
         (kLastShare + (1 - kLastShare) * 0.5 * (1 + std::cos(std::numbers::pi * std::min(1.0, share))));
}

}  // namespace terrace
