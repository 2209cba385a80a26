#include "worker/parallel/pipeline.h"

#include <algorithm>
#include <optional>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr size_t kTokens[] = {1, 2, 3, 15, 16, 17, 64, 255, 256, 8192, 65536};

TEST(MicroBatchesOf, OneStageHasOneAndNoneIsEmpty) {
  for (const size_t tokens : kTokens) {
    EXPECT_EQ(MicroBatchesOf(tokens, 1), 1u);
    for (size_t stages = 2; stages <= 64; ++stages) {
      EXPECT_GE(MicroBatchesOf(tokens, stages), 1u);
      EXPECT_LE(MicroBatchesOf(tokens, stages), tokens) << stages << " stages";
    }
  }
}

// Of the times that the header says a step takes, in tokens: no other number of micro-batches is better by
// more than rounding one down can cost.
TEST(MicroBatchesOf, AreAboutAsManyAsTakeTheLeastTime) {
  const auto time = [](size_t tokens, size_t stages, size_t count) {
    const auto of_one = static_cast<double>(tokens) / static_cast<double>(count);
    return static_cast<double>(count + stages - 1) * (kTokensOfAWeightRead + of_one);
  };
  for (const size_t tokens : kTokens) {
    for (const size_t stages : {2u, 3u, 4u, 8u, 64u}) {
      const double chosen = time(tokens, stages, MicroBatchesOf(tokens, stages));
      for (size_t count = 1; count <= std::min<size_t>(tokens, 1000); ++count)
        EXPECT_LE(chosen, 1.1 * time(tokens, stages, count)) << tokens << " tokens, " << stages << " stages";
    }
  }
}

TEST(MicroBatches, EveryStageComputesEveryTokenOnceAndAfterTheStageBeforeIt) {
  for (const size_t tokens : kTokens) {
    for (const size_t stages : {1u, 2u, 3u, 8u}) {
      SCOPED_TRACE(testing::Message() << tokens << " tokens, " << stages << " stages");
      const MicroBatches micro_batches(tokens, stages);
      for (size_t stage = 0; stage < stages; ++stage) {
        size_t done = 0;
        for (size_t tick = 0; tick < micro_batches.ticks(); ++tick) {
          const std::optional<IndexRange> part = micro_batches.At(tick, stage);
          if (!part.has_value()) continue;
          EXPECT_EQ(part->begin, done);
          EXPECT_GT(part->size(), 0u);
          done = part->end;
          if (stage > 0) {
            EXPECT_EQ(micro_batches.At(tick - 1, stage - 1), part);
          }
        }
        EXPECT_EQ(done, tokens);
      }
    }
  }
}

}  // namespace
}  // namespace terrace
