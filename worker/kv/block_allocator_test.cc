#include "worker/kv/block_allocator.h"

#include <set>

#include "base/rng.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(BlockAllocator, AccountsForEveryBlockUnderAnyMixOfCalls) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    constexpr size_t kTotal = 50;
    BlockAllocator allocator(kTotal);
    std::vector<BlockTable> tables(6);
    for (uint64_t step = 0; step < 500; ++step) {
      BlockTable& table = tables[RandomBits(seed, step, 0) % tables.size()];
      if (RandomBits(seed, step, 1) % 3 == 0) {
        allocator.Release(table);
        EXPECT_TRUE(table.empty());
      } else {
        const size_t count = RandomBits(seed, step, 2) % 20, free = allocator.free();
        EXPECT_EQ(allocator.Allocate(count, table).ok(), count <= free);
      }
      std::set<BlockId> held;
      for (const BlockTable& each : tables) {
        for (const BlockId id : each) {
          EXPECT_TRUE(id >= 0 && id < static_cast<BlockId>(kTotal));
          EXPECT_TRUE(held.insert(id).second) << "block " << id << " is in two places";
        }
      }
      ASSERT_EQ(allocator.held(), held.size());
      ASSERT_EQ(allocator.free() + allocator.held(), allocator.total());
    }
  }
}

TEST(BlockAllocator, GivesAllOrNothing) {
  BlockAllocator allocator(4);
  BlockTable table;
  ASSERT_TRUE(allocator.Allocate(3, table).ok());
  const Status status = allocator.Allocate(2, table);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_NE(Message(status).find("2 blocks asked for, 1 of 4 free"), std::string::npos) << Message(status);
  EXPECT_EQ(table.size(), 3u);
  EXPECT_EQ(allocator.held(), 3u);
}

TEST(BlockAllocator, ReusesTheBlockGivenBackLast) {
  BlockAllocator allocator(8);
  BlockTable a, b;
  ASSERT_TRUE(allocator.Allocate(2, a).ok());
  ASSERT_TRUE(allocator.Allocate(1, b).ok());
  const BlockId warm = b[0];
  allocator.Release(b);
  ASSERT_TRUE(allocator.Allocate(1, b).ok());
  EXPECT_EQ(b[0], warm);
}

TEST(BlockAllocatorDeathTest, GivingABlockBackTwiceIsABug) {
  BlockAllocator allocator(2);
  BlockTable table;
  ASSERT_TRUE(allocator.Allocate(1, table).ok());
  BlockTable copy = table;
  allocator.Release(table);
  EXPECT_DEATH(allocator.Release(copy), "not held");
}

TEST(BlocksFor, CoversEveryPosition) {
  EXPECT_EQ(BlocksFor(0, 16), 0u);
  EXPECT_EQ(BlocksFor(1, 16), 1u);
  EXPECT_EQ(BlocksFor(16, 16), 1u);
  EXPECT_EQ(BlocksFor(17, 16), 2u);
}

}  // namespace
}  // namespace terrace
