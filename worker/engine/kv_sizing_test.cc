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
  EXPECT_THAT(sizing->arithmetic,
              ::testing::HasSubstr("4 sequences x 7 blocks of 16 tokens x 1024 bytes in f32"));
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

TEST(SizeKvPool, SmallerDTypesMakeMoreBlocksOfTheSameBytes) {
  KvSizingInput input = Input();
  input.shape.head_dim = 64;
  input.pool_bytes = 256 << 10;  // 16 blocks of f32
  for (const auto& [dtype, blocks] :
       {std::pair(KvDType::kF32, 16), std::pair(KvDType::kF16, 32), std::pair(KvDType::kBF16, 32),
        std::pair(KvDType::kInt8, 60), std::pair(KvDType::kFp8, 64)}) {
    input.shape.dtype = dtype;
    const auto sizing = SizeKvPool(input);
    ASSERT_TRUE(sizing.ok()) << sizing.status();
    EXPECT_EQ(sizing->blocks, static_cast<uint32_t>(blocks)) << KvDTypeName(dtype);
    EXPECT_EQ(sizing->bytes, sizing->blocks * input.shape.BlockBytes());
    EXPECT_THAT(sizing->arithmetic, ::testing::HasSubstr(Concat(" bytes in ", KvDTypeName(dtype), " = ")));
  }
}

TEST(SizeKvPool, TheSwapMemoryComesOutOfTheFreeMemoryFirst) {
  KvSizingInput input = Input();
  input.free_bytes = 40 * 1024;
  input.shape.host_blocks = 10;
  const auto sizing = SizeKvPool(input);
  ASSERT_TRUE(sizing.ok()) << sizing.status();
  EXPECT_EQ(sizing->blocks, 15u);
  EXPECT_THAT(sizing->arithmetic, ::testing::HasSubstr("free memory 40960, less 10240 for swapping"));
  input.pool_bytes = 31 * 1024;
  EXPECT_THAT(Message(SizeKvPool(input).status()), ::testing::HasSubstr("31744 bytes needed, 30720 free"));
  input.shape.host_blocks = 50;
  EXPECT_EQ(Reason(SizeKvPool(input).status()), "kv_pool_too_small");
}

TEST(SizeKvPool, ADevicesMemoryIsThePoolsButForATwentiethAndHoldsNoSwapMemory) {
  KvSizingInput input = Input();
  input.place = KvPlace::kDevice;
  input.free_bytes = 20 * 1024;
  input.shape.host_blocks = 10;
  const auto sizing = SizeKvPool(input);
  ASSERT_TRUE(sizing.ok()) << sizing.status();
  EXPECT_EQ(sizing->blocks, 19u);
  EXPECT_THAT(sizing->arithmetic, ::testing::HasSubstr("0.95 of the device's free memory 19456; 19 blocks"));
  input.pool_bytes = 20 * 1024;
  EXPECT_EQ(SizeKvPool(input)->blocks, 20u);
  input.pool_bytes = 21 * 1024;
  EXPECT_THAT(Message(SizeKvPool(input).status()), ::testing::HasSubstr("21504 bytes needed, 20480 free"));
  input.pool_bytes = 0;
  input.free_bytes = 7 * 1024;
  EXPECT_EQ(Reason(SizeKvPool(input).status()), "kv_pool_too_small");
}

TEST(SizeDraftPool, TakesAtMostAnEighthAndLessThanOneContextIfNeedBe) {
  KvSizingInput input = Input();
  EXPECT_EQ(SizeDraftPool(input)->blocks, 28u) << "more than all sequences at their longest is of no use";
  input.free_bytes = 40 * 1024;
  const auto sizing = SizeDraftPool(input);
  ASSERT_TRUE(sizing.ok()) << sizing.status();
  EXPECT_EQ(sizing->blocks, 5u);
  EXPECT_EQ(sizing->bytes, 5u * 1024);
  EXPECT_THAT(sizing->arithmetic, ::testing::HasSubstr("an eighth of the free memory 5120; 5 blocks"));
  input.free_bytes = 7 * 1024;
  EXPECT_EQ(Reason(SizeDraftPool(input).status()), "kv_pool_too_small");
}

TEST(SizeDraftPool, ObeysAGivenSizeWithinTheFreeMemory) {
  KvSizingInput input = Input();
  input.pool_bytes = 100 * 1024;
  EXPECT_EQ(SizeDraftPool(input)->blocks, 100u);
  input.pool_bytes = 2 << 20;
  EXPECT_EQ(Reason(SizeDraftPool(input).status()), "kv_pool_too_small");
  input.pool_bytes = 1000;
  EXPECT_EQ(Reason(SizeDraftPool(input).status()), "kv_pool_too_small");
}

}  // namespace
}  // namespace terrace
