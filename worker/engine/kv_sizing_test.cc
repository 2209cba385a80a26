#include "worker/engine/kv_sizing.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

// 1,024 bytes a block; a context of 100 tokens is 7 blocks.
KvSizingInput Input() {
  return {.shape = {.layers = 2, .kv_heads = 1, .head_dim = 4, .block_tokens = 16},
          .context_length = 100,
          .max_sequences = 4,
          .pool_bytes = 0,
          .free_bytes = 1 << 20};
}

TEST(SizeKvPool, HoldsEverySequenceAtItsLongestWhenMemoryAllows) {
  const auto sizing = SizeKvPool(Input());
  ASSERT_TRUE(sizing.ok()) << sizing.status();
  EXPECT_EQ(sizing->blocks, 28u);
  EXPECT_EQ(sizing->bytes, 28u * 1024);
  EXPECT_THAT(sizing->arithmetic, ::testing::HasSubstr("4 sequences x 7 blocks of 16 tokens x 1024 bytes"));
}

TEST(SizeKvPool, TakesAtMostHalfOfTheFreeMemory) {
  KvSizingInput input = Input();
  input.free_bytes = 40 * 1024;
  EXPECT_EQ(SizeKvPool(input)->blocks, 20u);
  input.free_bytes = 14 * 1024;
  EXPECT_EQ(SizeKvPool(input)->blocks, 7u);
  input.free_bytes = 13 * 1024;
  const auto refused = SizeKvPool(input);
  EXPECT_EQ(refused.status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(refused.status()), "kv_pool_too_small");
  EXPECT_THAT(Message(refused.status()), ::testing::HasSubstr("needs 7168 bytes, but only 6656"));
}

TEST(SizeKvPool, ObeysAGivenSizeWithinTheFreeMemory) {
  KvSizingInput input = Input();
  input.pool_bytes = 10 * 1024 + 1;
  EXPECT_EQ(SizeKvPool(input)->blocks, 10u);
  input.pool_bytes = 6 * 1024;
  EXPECT_EQ(Reason(SizeKvPool(input).status()), "kv_pool_too_small");
  input.pool_bytes = 2 << 20;
  EXPECT_THAT(Message(SizeKvPool(input).status()),
              ::testing::HasSubstr("2097152 bytes needed, 1048576 free"));
}

}  // namespace
}  // namespace terrace
