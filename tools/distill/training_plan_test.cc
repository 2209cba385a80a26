#include "tools/distill/training_plan.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "base/rng.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

// Rows 100, 101, ... of 2 to 60 tokens.
struct Rows {
  explicit Rows(size_t count) {
    for (uint32_t i = 0; i < count; ++i) {
      indices.push_back(100 + i);
      sizes.push_back(2 + RandomBits(/*seed=*/5, i) % 59);
    }
  }
  uint64_t tokens() const { return std::accumulate(sizes.begin(), sizes.end(), uint64_t{0}); }
  size_t size_of(uint32_t row) const { return sizes[row - 100]; }
  std::vector<uint32_t> indices;
  std::vector<size_t> sizes;
};

std::vector<uint32_t> RowsOf(const TrainingStep& step) {
  std::vector<uint32_t> rows;
  for (const MicroBatch& batch : step.batches) rows.insert(rows.end(), batch.begin(), batch.end());
  return rows;
}

std::vector<std::vector<uint32_t>> RowsOf(const std::vector<TrainingStep>& steps) {
  std::vector<std::vector<uint32_t>> rows;
  for (const TrainingStep& step : steps) rows.push_back(RowsOf(step));
  return rows;
}

TEST(PlanTraining, APassHasEachRowOnceInStepsOfTheWantedSize) {
  const Rows rows(200);
  const auto steps =
      PlanTraining(rows.indices, rows.sizes, {.batch_tokens = 300, .memory_tokens = 128, .seed = 1});
  std::vector<uint32_t> all;
  for (const TrainingStep& step : steps) {
    uint64_t tokens = 0;
    for (const uint32_t row : RowsOf(step)) {
      tokens += rows.size_of(row);
      all.push_back(row);
    }
    EXPECT_EQ(step.tokens, tokens);
    EXPECT_LT(tokens, 300u + 61u);
    EXPECT_TRUE(tokens >= 300 || &step == &steps.back());
  }
  std::ranges::sort(all);
  EXPECT_EQ(all, rows.indices);
}

TEST(PlanTraining, MicroBatchesFitMemoryWithTheirPaddingAndRowsOfLikeSizeAreTogether) {
  const Rows rows(100);
  const auto steps =
      PlanTraining(rows.indices, rows.sizes, {.batch_tokens = 400, .memory_tokens = 50, .seed = 2});
  for (const TrainingStep& step : steps) {
    const std::vector<uint32_t> of_step = RowsOf(step);
    EXPECT_TRUE(std::ranges::is_sorted(of_step, {}, [&](uint32_t row) { return rows.size_of(row); }));
    for (const MicroBatch& batch : step.batches) {
      const size_t longest = rows.size_of(batch.back());
      EXPECT_TRUE(batch.size() * longest <= 50 || batch.size() == 1) << batch.size() << " x " << longest;
    }
  }
}

TEST(PlanTraining, MoreTokensAreMorePassesInOtherOrdersAndBeginWithTheSameSteps) {
  const Rows rows(50);
  const TrainingPlanOptions options = {.batch_tokens = 100, .memory_tokens = 100, .seed = 3};
  TrainingPlanOptions longer = options;
  longer.tokens = 3 * rows.tokens();
  const auto once = RowsOf(PlanTraining(rows.indices, rows.sizes, options)),
             thrice = RowsOf(PlanTraining(rows.indices, rows.sizes, longer));
  std::map<uint32_t, int> times;
  std::vector<uint32_t> order;
  for (const auto& step : thrice) {
    for (const uint32_t row : step) ++times[row];
    order.insert(order.end(), step.begin(), step.end());
  }
  for (const uint32_t row : rows.indices) EXPECT_EQ(times[row], 3) << row;
  for (size_t i = 0; i + 1 < once.size(); ++i)
    EXPECT_EQ(once[i], thrice[i]) << i;  // the last one was not full
  EXPECT_FALSE(std::equal(order.begin(), order.begin() + 50, order.begin() + 50));
}

TEST(PlanTraining, TheOrderIsTheSeeds) {
  const Rows rows(50);
  const auto with = [&](uint64_t seed) {
    return RowsOf(
        PlanTraining(rows.indices, rows.sizes, {.batch_tokens = 100, .memory_tokens = 100, .seed = seed}));
  };
  EXPECT_EQ(with(1), with(1));
  EXPECT_NE(with(1), with(2));
}

TEST(PlanTraining, EndsWithTheStepInWhichTheWantedTokensAreReached) {
  const Rows rows(50);
  const auto steps = PlanTraining(rows.indices, rows.sizes,
                                  {.tokens = 250, .batch_tokens = 100, .memory_tokens = 100, .seed = 4});
  uint64_t tokens = 0;
  for (const TrainingStep& step : steps) tokens += step.tokens;
  EXPECT_GE(tokens, 250u);
  EXPECT_LT(tokens, 250u + 61u);
}

TEST(SplitRows, KeepsTheOrder) {
  const Rows rows(30);
  std::vector<uint32_t> all;
  for (const MicroBatch& batch : SplitRows(rows.indices, rows.sizes, 100)) {
    size_t longest = 0;
    for (const uint32_t row : batch) longest = std::max(longest, rows.size_of(row));
    EXPECT_LE(batch.size() * longest, 100u);
    all.insert(all.end(), batch.begin(), batch.end());
  }
  EXPECT_EQ(all, rows.indices);
}

TEST(LearningRate, RisesInALineAndFallsToATenth) {
  constexpr uint64_t kSteps = 100, kWarmup = 10;
  for (uint64_t step = 0; step < kWarmup; ++step)
    EXPECT_DOUBLE_EQ(LearningRate(2, step, kSteps, kWarmup), 2.0 * static_cast<double>(step + 1) / kWarmup);
  EXPECT_DOUBLE_EQ(LearningRate(2, kWarmup, kSteps, kWarmup), 2);
  for (uint64_t step = kWarmup; step + 1 < kSteps; ++step)
    EXPECT_GT(LearningRate(2, step, kSteps, kWarmup), LearningRate(2, step + 1, kSteps, kWarmup));
  EXPECT_NEAR(LearningRate(2, kSteps, kSteps, kWarmup), 0.2, 1e-12);
  EXPECT_DOUBLE_EQ(LearningRate(2, 0, 1, 0), 2);
  EXPECT_DOUBLE_EQ(LearningRate(2, 0, 1, 1), 2);
}

}  // namespace
}  // namespace terrace
