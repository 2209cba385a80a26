#include "kernels/copy/kv_copy_device.h"

#include "gtest/gtest.h"
#include "kernels/copy/kv_copy_testing.h"

namespace terrace {
namespace {

struct Case {
  uint32_t block_tokens, head_dim, rows;
};
constexpr Case kCases[] = {{16, 64, 16}, {16, 32, 7}, {16, 128, 1}, {128, 256, 128}, {32, 80, 31}};

// `pool` and `staging` by the kernel and by the host; both must be the same afterwards.
void ExpectSameCopy(KvCopyPool& pool, std::vector<uint32_t>& staging, GpuKvCopyArgs args, bool staged,
                    uint64_t seed) {
  KvCopyPool got = pool;
  std::vector<uint32_t> got_staging = staging;
  for (size_t i = 0; i < got.parts.size(); ++i) got.parts[i].data = got.memory[i].data();
  args.parts = got.parts.data();
  args.part_count = static_cast<uint32_t>(got.parts.size());
  args.kv_heads = pool.kv_heads;
  args.blocks = pool.blocks;
  args.staging = staged ? got_staging.data() : nullptr;
  simt::RunSeeded(seed, {args.part_count, args.kv_heads}, kKvCopyThreads, 0, KvCopyKernel, args);
  args.staging = staged ? staging.data() : nullptr;
  pool.Copy(args);
  EXPECT_EQ(got.memory, pool.memory);
  EXPECT_EQ(got_staging, staging);
}

TEST(KvCopyDevice, MovesRowsWithinThePoolAndThroughStaging) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << c.block_tokens << " tokens, head_dim " << c.head_dim << ", rows "
                                    << c.rows);
    KvCopyPool pool(/*blocks=*/5, /*heads=*/2, c.block_tokens, c.head_dim);
    std::vector<uint32_t> staging(pool.staging_bytes / 4, 0xffffffff);
    ExpectSameCopy(pool, staging, {.from = 1, .to = 4, .rows = c.rows}, false, /*seed=*/0);
    ExpectSameCopy(pool, staging, {.from = 4, .to = 0, .rows = c.rows}, true, /*seed=*/1);
    ExpectSameCopy(pool, staging, {.from = 0, .to = 2, .rows = c.rows, .to_pool = true}, true, /*seed=*/2);
    ExpectSameCopy(pool, staging, {.from = 3, .to = 3, .rows = c.rows}, false, /*seed=*/3);
  }
}

// Four bytes at a time where 16 would not be aligned.
TEST(KvCopyDevice, MovesRowsThatAreNotAligned) {
  std::vector<uint32_t> from(64), to(64, 0xffffffff);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<uint32_t>(i);
  simt::Run({}, kKvCopyThreads, 0, [&] {
    GpuKvPart part = {.data = from.data(), .bytes = 128, .row_bytes = 20};
    KvCopyKernel(
        {.parts = &part, .part_count = 1, .kv_heads = 1, .blocks = 1, .rows = 6, .staging = to.data() + 1});
  });
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(to[i], i >= 1 && i <= 30 ? i - 1 : 0xffffffff) << i;
}

}  // namespace
}  // namespace terrace
