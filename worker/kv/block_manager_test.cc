#include "worker/kv/block_manager.h"

#include <algorithm>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "text/block_key.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;

const Hash128 kRoot = RootBlockKey({.model = "m"});

std::vector<Hash128> KeysOf(std::span<const int32_t> tokens, uint32_t block_tokens) {
  std::vector<Hash128> keys;
  ExtendBlockKeys(kRoot, tokens, block_tokens, keys);
  return keys;
}

// Publishes `tokens`, held by `table`, from block `first` on.
void PublishAll(BlockManager& manager, std::span<const int32_t> tokens, uint32_t block_tokens,
                BlockTable& table, size_t first = 0) {
  const auto keys = KeysOf(tokens, block_tokens);
  for (size_t i = first; i * block_tokens < tokens.size(); ++i) {
    const auto rows = tokens.subspan(i * block_tokens);
    const bool is_whole = rows.size() >= block_tokens;
    table[i] = manager.Publish(table[i], i == 0 ? kRoot : keys[i - 1],
                               rows.first(std::min<size_t>(rows.size(), block_tokens)),
                               is_whole ? std::optional(keys[i]) : std::nullopt);
  }
}

TEST(BlockManager, AllocatesAllOrNoneAndSaysWhatThereIs) {
  BlockManager manager({.blocks = 4});
  BlockTable table;
  EXPECT_TRUE(manager.Allocate(3, table).ok());
  EXPECT_THAT(table, ElementsAre(0, 1, 2));
  const Status status = manager.Allocate(2, table);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), ::testing::HasSubstr("2 blocks asked for, 1 of 4"));
  EXPECT_EQ(table.size(), 3u);
  manager.Release(table);
  EXPECT_EQ(manager.free(), 4u);
}

TEST(BlockManager, AWholeBlockIsSharedAndATailIsOffered) {
  BlockManager manager({.blocks = 8, .block_tokens = 4});
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  BlockTable table;
  ASSERT_TRUE(manager.Allocate(3, table).ok());
  PublishAll(manager, tokens, 4, table);
  const PrefixMatch all = manager.Match(kRoot, KeysOf(tokens, 4), tokens, 100);
  EXPECT_EQ(all.blocks, BlockTable(table.begin(), table.begin() + 2));
  EXPECT_EQ(all.tokens, 10u);
  EXPECT_EQ(all.tail, table[2]);
  EXPECT_EQ(all.tail_rows, 2u);
  const PrefixMatch limited = manager.Match(kRoot, KeysOf(tokens, 4), tokens, 7);
  EXPECT_EQ(limited.blocks.size(), 1u);
  EXPECT_EQ(limited.tail, table[1]);  // its first three rows
  EXPECT_EQ(limited.tail_rows, 3u);
  const Hash128 other = RootBlockKey({.model = "other"});
  std::vector<Hash128> keys;
  ExtendBlockKeys(other, tokens, 4, keys);
  EXPECT_EQ(manager.Match(other, keys, tokens, 100).tokens, 0u);
}

TEST(BlockManager, OfSeveralTailsTheLongestMatches) {
  BlockManager manager({.blocks = 8, .block_tokens = 4});
  BlockTable tables[3];
  const std::vector<int32_t> contents[] = {{1, 2, 9}, {1, 2, 3}, {1, 9}};
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(manager.Allocate(1, tables[i]).ok());
    PublishAll(manager, contents[i], 4, tables[i]);
  }
  const std::vector<int32_t> wanted = {1, 2, 3, 4};
  const PrefixMatch match = manager.Match(kRoot, KeysOf(wanted, 4), wanted, 4);
  EXPECT_EQ(match.tail, tables[1][0]);
  EXPECT_EQ(match.tail_rows, 3u);
}

TEST(BlockManager, TwoBlocksWithTheSameRowsBecomeOne) {
  BlockManager manager({.blocks = 4, .block_tokens = 2});
  BlockTable first, second;
  ASSERT_TRUE(manager.Allocate(1, first).ok());
  ASSERT_TRUE(manager.Allocate(1, second).ok());
  const std::vector<int32_t> tokens = {5, 6};
  PublishAll(manager, tokens, 2, first);
  PublishAll(manager, tokens, 2, second);
  EXPECT_EQ(first, second);
  EXPECT_EQ(manager.holders(first[0]), 2u);
  EXPECT_EQ(manager.free(), 3u);
}

TEST(BlockManager, WhatHoldsOnlyRowsOfWrongTokensIsForgottenWhoeverHoldsIt) {
  BlockManager manager({.blocks = 12, .block_tokens = 4});
  const std::vector<int32_t> wrong = {1, 2, 3, 4, 5, 6, 7};
  BlockTable tables[4];
  const std::vector<int32_t> contents[] = {wrong, {1, 2, 3}, {1, 2, 3, 4, 5, 9}, {1, 9}};
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(manager.Allocate(BlocksFor(contents[i].size(), 4), tables[i]).ok());
    PublishAll(manager, contents[i], 4, tables[i]);
  }
  manager.Release(tables[1]);
  manager.ForgetAlike(kRoot, KeysOf(wrong, 4), wrong);
  EXPECT_EQ(manager.Match(kRoot, KeysOf(wrong, 4), wrong, 7).tail_rows, 1u);  // of {1, 9}
  EXPECT_EQ(manager.cached(), 0u);
  BlockTable again;  // what followed another's whole block is still known
  ASSERT_TRUE(manager.Allocate(1, again).ok());
  PublishAll(manager, std::span(wrong).first(4), 4, again);
  const PrefixMatch match = manager.Match(kRoot, KeysOf(contents[2], 4), contents[2], 6);
  EXPECT_EQ(match.blocks, again);
  EXPECT_EQ(match.tail, tables[2][1]);
  manager.Audit(std::vector<const BlockTable*>{&tables[0], &tables[2], &tables[3], &again});
}

TEST(BlockManagerDeathTest, ABlockIsNotGivenBackTwice) {
  BlockManager manager({.blocks = 4});
  BlockTable table, copy;
  ASSERT_TRUE(manager.Allocate(1, table).ok());
  copy = table;
  manager.Release(table);
  EXPECT_DEATH(manager.Release(copy), "not held");
  EXPECT_DEATH(manager.Share(0), "free");
}

// Against a model that knows contents only: whatever Match offers holds the tokens it stands for, nothing
// that an unevicted block holds is missed, and the least recently used block goes first.
TEST(BlockManager, RandomOperationsAgreeWithAPlainModel) {
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(Concat("seed ", seed));
    std::mt19937 random(seed);
    const auto draw = [&](uint32_t low, uint32_t high) {
      return std::uniform_int_distribution<uint32_t>(low, high)(random);
    };
    const uint32_t block_tokens = draw(1, 5), total = draw(4, 30);
    BlockManager manager({.blocks = total, .block_tokens = block_tokens});
    std::vector<std::vector<int32_t>> memory(total);  // what each block's rows really hold, from the root on
    struct Holder {
      std::vector<int32_t> tokens;
      BlockTable blocks;
    };
    std::vector<Holder> holders;
    for (int step = 0; step < 400; ++step) {
      if (draw(0, 2) > 0) {
        Holder holder;
        for (uint32_t i = 0, length = draw(1, 4 * block_tokens); i < length; ++i)
          holder.tokens.push_back(static_cast<int32_t>(draw(0, 1)));
        const auto keys = KeysOf(holder.tokens, block_tokens);
        PrefixMatch match = manager.Match(kRoot, keys, holder.tokens, holder.tokens.size());
        // What is offered holds what it stands for.
        for (size_t i = 0; i < match.blocks.size(); ++i) {
          const auto& content = memory[static_cast<size_t>(match.blocks[i])];
          ASSERT_EQ(content.size(), (i + 1) * block_tokens);
          ASSERT_TRUE(std::ranges::equal(content, std::span(holder.tokens).first(content.size())));
        }
        if (match.tail >= 0) {
          const auto& content = memory[static_cast<size_t>(match.tail)];
          ASSERT_GE(content.size(), match.tokens);
          ASSERT_TRUE(std::ranges::equal(std::span(content).first(match.tokens),
                                         std::span(holder.tokens).first(match.tokens)));
        }
        ASSERT_EQ(match.tokens, match.blocks.size() * block_tokens + match.tail_rows);
        for (const BlockId block : match.blocks) manager.Share(block);
        const size_t needed = BlocksFor(holder.tokens.size(), block_tokens) - match.blocks.size();
        holder.blocks = match.blocks;
        if (manager.Allocate(needed, holder.blocks).ok()) {
          PublishAll(manager, holder.tokens, block_tokens, holder.blocks, match.blocks.size());
          for (size_t i = 0; i < holder.blocks.size(); ++i) {
            const size_t end = std::min(holder.tokens.size(), (i + 1) * block_tokens);
            memory[static_cast<size_t>(holder.blocks[i])].assign(
                holder.tokens.begin(), holder.tokens.begin() + static_cast<ptrdiff_t>(end));
          }
          holders.push_back(std::move(holder));
        } else {
          manager.Release(holder.blocks);
        }
      } else if (!holders.empty()) {
        const size_t i = draw(0, static_cast<uint32_t>(holders.size() - 1));
        if (draw(0, 9) == 0) {
          const auto& tokens = holders[i].tokens;
          const auto keys = KeysOf(tokens, block_tokens);
          manager.ForgetAlike(kRoot, keys, tokens);
          ASSERT_TRUE(manager.Match(kRoot, keys, tokens, tokens.size()).blocks.empty());
        }
        manager.Release(holders[i].blocks, /*keeps_tail=*/draw(0, 1) > 0);
        holders.erase(holders.begin() + static_cast<ptrdiff_t>(i));
      }
      std::vector<const BlockTable*> tables;
      for (const Holder& holder : holders) tables.push_back(&holder.blocks);
      manager.Audit(tables);
    }
    for (Holder& holder : holders) manager.Release(holder.blocks);
    EXPECT_EQ(manager.held(), 0u);
    EXPECT_EQ(manager.free() + manager.cached(), total);
  }
}

TEST(BlockManager, TheLeastRecentlyUsedBlockGivesWayFirst) {
  BlockManager manager({.blocks = 3, .block_tokens = 1});
  for (const int32_t token : {10, 11, 12}) {
    BlockTable table;
    ASSERT_TRUE(manager.Allocate(1, table).ok());
    const std::vector<int32_t> tokens = {token};
    PublishAll(manager, tokens, 1, table);
    manager.Release(table);
  }
  const auto is_cached = [&](int32_t token) {
    const std::vector<int32_t> tokens = {token};
    return manager.Match(kRoot, KeysOf(tokens, 1), tokens, 1).tokens == 1;
  };
  const std::vector<int32_t> oldest = {10};
  BlockTable used = manager.Match(kRoot, KeysOf(oldest, 1), oldest, 1).blocks;
  manager.Share(used[0]);
  manager.Release(used);
  BlockTable table;
  ASSERT_TRUE(manager.Allocate(1, table).ok());
  EXPECT_TRUE(is_cached(10));
  EXPECT_FALSE(is_cached(11));
  EXPECT_TRUE(is_cached(12));
}

TEST(BlockManager, ATailThatIsNotKeptGivesWayFirstAndWholeBlocksAreAsOthers) {
  BlockManager manager({.blocks = 3, .block_tokens = 2});
  const std::vector<int32_t> older = {1, 2}, newer = {3, 4, 5}, whole = {3, 4};
  BlockTable table;
  ASSERT_TRUE(manager.Allocate(1, table).ok());
  PublishAll(manager, older, 2, table);
  manager.Release(table);
  ASSERT_TRUE(manager.Allocate(2, table).ok());
  PublishAll(manager, newer, 2, table);
  manager.Release(table, /*keeps_tail=*/false);
  const auto cached = [&](const std::vector<int32_t>& tokens) {
    return manager.Match(kRoot, KeysOf(tokens, 2), tokens, tokens.size()).tokens;
  };
  EXPECT_EQ(cached(newer), 3u);
  ASSERT_TRUE(manager.Allocate(1, table).ok());
  EXPECT_EQ(cached(newer), 2u) << "the tail is gone";
  EXPECT_EQ(cached(older), 2u);
  ASSERT_TRUE(manager.Allocate(1, table).ok());
  EXPECT_EQ(cached(older), 0u) << "then the least recently used";
  EXPECT_EQ(cached(whole), 2u);
  manager.Audit(std::vector<const BlockTable*>{&table});
}

}  // namespace
}  // namespace terrace
