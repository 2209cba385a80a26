#include "router/cluster/prefix_index.h"

#include <atomic>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;

std::vector<uint32_t> Matched(const PrefixIndex& index, const std::vector<uint64_t>& keys) {
  std::vector<uint32_t> matched = {99};
  index.Match(keys, matched);
  return matched;
}

PrefixDelta Snapshot(const std::vector<uint64_t>& keys) {
  PrefixDelta delta{.is_snapshot = true, .added = keys};
  for (const uint64_t key : keys) delta.digest ^= key;
  return delta;
}

TEST(PrefixIndex, AReplicaMatchesUpToTheFirstBlockItLacks) {
  PrefixIndex index;
  const auto a = index.Add(), b = index.Add(), c = index.Add(), d = index.Add();
  EXPECT_TRUE(index.Apply(a, Snapshot({1, 2, 3})));
  EXPECT_TRUE(index.Apply(b, Snapshot({1, 2})));
  EXPECT_TRUE(index.Apply(c, Snapshot({2, 3})));  // lost its first block: the others are of no use
  EXPECT_THAT(Matched(index, {1, 2, 3, 4}), ElementsAre(3, 2, 0, 0));
  EXPECT_THAT(Matched(index, {2, 3}), ElementsAre(2, 1, 2, 0));
  EXPECT_THAT(Matched(index, {9, 1}), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(Matched(index, {}), ElementsAre(0, 0, 0, 0));
  EXPECT_EQ(index.keys_of(a), 3u);
  EXPECT_EQ(index.keys_of(d), 0u);
}

TEST(PrefixIndex, MatchesCountInUnits) {
  PrefixIndex index;
  EXPECT_TRUE(index.Apply(index.Add(), Snapshot({1, 2})));
  EXPECT_TRUE(index.Apply(index.Add(), Snapshot({1})));
  index.Add();
  std::vector<uint32_t> matched;
  index.Match(std::vector<uint64_t>{1, 2, 3}, matched, /*unit=*/16);
  EXPECT_THAT(matched, ElementsAre(32, 16, 0));
}

TEST(PrefixIndex, AWrongDigestLeavesNothingKnownOfTheReplicaAndTheOthersAsTheyAre) {
  PrefixIndex index;
  const auto a = index.Add(), b = index.Add();
  EXPECT_TRUE(index.Apply(a, Snapshot({1, 2})));
  EXPECT_TRUE(index.Apply(b, Snapshot({1, 2})));
  EXPECT_FALSE(index.Apply(a, {.added = {3}, .digest = 1 ^ 2 ^ 4}));
  EXPECT_THAT(Matched(index, {1, 2, 3}), ElementsAre(0, 2));
  EXPECT_EQ(index.keys_of(a), 0u);
  EXPECT_TRUE(index.Apply(a, Snapshot({1}))) << "and a snapshot starts it again";
  EXPECT_THAT(Matched(index, {1, 2, 3}), ElementsAre(1, 2));
}

TEST(PrefixIndex, ARemovedReplicasSlotIsUsedAgainAndEmpty) {
  PrefixIndex index;
  const auto a = index.Add(), b = index.Add();
  EXPECT_TRUE(index.Apply(a, Snapshot({1})));
  index.Remove({&a, 1});
  EXPECT_THAT(Matched(index, {1}), ElementsAre(0, 0));
  EXPECT_EQ(index.Add(), a);
  EXPECT_THAT(Matched(index, {1}), ElementsAre(0, 0));
  EXPECT_NE(b, a);
}

TEST(PrefixIndex, AKeysHoldersGrowAndShrinkFromOneToManyAndBack) {
  for (const size_t replicas : {2, 8, 9, 12, 70, 300}) {
    PrefixIndex index;
    for (size_t i = 0; i < replicas; ++i) EXPECT_TRUE(index.Apply(index.Add(), Snapshot({5})));
    EXPECT_EQ(Matched(index, {5}), std::vector<uint32_t>(replicas, 1));
    for (size_t i = 0; i < replicas; ++i) {
      const auto left = static_cast<PrefixIndex::Slot>((7 * i + 3) % replicas);  // some order
      if (index.keys_of(left) == 0) continue;
      index.Clear(left);
      std::vector<uint32_t> want(replicas);
      for (PrefixIndex::Slot slot = 0; slot < replicas; ++slot) {
        want[slot] = static_cast<uint32_t>(index.keys_of(slot));
      }
      EXPECT_EQ(Matched(index, {5}), want);
    }
    std::vector<PrefixIndex::Slot> all(replicas);
    std::iota(all.begin(), all.end(), 0);
    index.Clear(all);
    EXPECT_EQ(Matched(index, {5}), std::vector<uint32_t>(replicas, 0));
  }
}

// Blocks of one chain have the same holders or, where a replica lost its end, fewer and fewer: whatever the
// sets are, and whichever way they came to be.
TEST(PrefixIndex, AChainsHoldersDiffer) {
  constexpr size_t kBlocks = 40;
  std::vector<uint64_t> chain(kBlocks);
  std::iota(chain.begin(), chain.end(), 100);
  for (const size_t replicas : {3, 9, 64, 65, 130}) {
    SCOPED_TRACE(testing::Message() << replicas << " replicas");
    PrefixIndex index;
    std::vector<uint32_t> want(replicas);
    for (size_t i = 0; i < replicas; ++i) {
      want[i] = static_cast<uint32_t>(i % 3 == 0 ? kBlocks : 7 * i % kBlocks);
      EXPECT_TRUE(index.Apply(index.Add(), Snapshot({chain.begin(), chain.begin() + want[i]})));
    }
    EXPECT_EQ(Matched(index, chain), want);
    for (PrefixIndex::Slot slot = 0; slot < replicas; ++slot) {  // half of it, the last block first
      PrefixDelta delta;
      for (; want[slot] > kBlocks / 2; --want[slot]) delta.removed.push_back(chain[want[slot] - 1]);
      for (size_t i = 0; i < want[slot]; ++i) delta.digest ^= chain[i];
      EXPECT_TRUE(index.Apply(slot, delta));
    }
    EXPECT_EQ(Matched(index, chain), want);
  }
}

TEST(PrefixIndex, ItGrowsWithItsKeysAndFindsAll) {
  PrefixIndex index;
  const auto slot = index.Add();
  std::mt19937_64 random(1);
  std::vector<uint64_t> keys(30'000);
  for (uint64_t& key : keys) key = random() >> 2;  // 64 of the 256 tables
  EXPECT_TRUE(index.Apply(slot, Snapshot(keys)));
  EXPECT_EQ(index.keys_of(slot), keys.size());
  EXPECT_THAT(Matched(index, keys), ElementsAre(keys.size()));
  PrefixDelta delta;
  for (size_t i = 0; i < keys.size(); ++i) {  // every other one goes
    if (i % 2 == 0) {
      delta.digest ^= keys[i];
    } else {
      delta.removed.push_back(keys[i]);
    }
  }
  EXPECT_TRUE(index.Apply(slot, delta));
  EXPECT_EQ(index.keys_of(slot), keys.size() / 2);
  for (size_t i = 0; i < keys.size(); ++i) {
    ASSERT_THAT(Matched(index, {keys[i]}), ElementsAre(i % 2 == 0 ? 1 : 0)) << i;
  }
}

// Nobody who matches ever sees a replica half way through one change of a key, or waits for ever.
TEST(PrefixIndex, OthersMatchWhileItChanges) {
  PrefixIndex index;
  const auto steady = index.Add(), moving = index.Add();
  std::mt19937_64 random(1);
  std::vector<uint64_t> keys(50);
  for (uint64_t& key : keys) key = random();
  EXPECT_TRUE(index.Apply(steady, Snapshot(keys)));
  std::atomic<bool> is_over = false;
  std::vector<std::thread> readers;
  for (int i = 0; i < 2; ++i) {
    readers.emplace_back([&] {
      do {
        const auto matched = Matched(index, keys);
        EXPECT_EQ(matched[steady], keys.size());
        EXPECT_LE(matched[moving], keys.size());
        EXPECT_LE(index.keys_of(moving), 2 * keys.size());
      } while (!is_over);
    });
  }
  for (int round = 0; round < 100; ++round) {
    std::vector<uint64_t> both = keys;
    for (size_t i = 0; i < keys.size(); ++i) both.push_back(random());
    EXPECT_TRUE(index.Apply(moving, Snapshot(both)));
    EXPECT_TRUE(index.Apply(moving, {.removed = both}));
  }
  is_over = true;
  for (std::thread& reader : readers) reader.join();
}

// A prompt's keys: anywhere, or (`are_close`) so that they belong to the first and the last line of one
// table.
std::vector<uint64_t> Chain(size_t count, bool are_close, std::mt19937_64& random) {
  std::vector<uint64_t> chain(count);
  for (size_t i = 0; i < count; ++i) {
    chain[i] = are_close ? (i + 1) << 32 | (random() % 2 == 0 ? 0 : 0xffff'ffff) : random();
  }
  return chain;
}

// Any history of snapshots, deltas, losses and replicas that come and go agrees with sets; up to 200
// replicas, so that a key has one holder, a few, and many.
TEST(PrefixIndex, AgreesWithSetsUnderRandomHistories) {
  for (uint32_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const auto chain = Chain(seed % 4 < 2 ? 12 : 40, /*are_close=*/seed > 4, random);
    PrefixIndex index;
    std::map<PrefixIndex::Slot, std::set<uint64_t>> truth;
    const size_t most = seed % 2 == 0 ? 200 : 5;
    for (int step = 0; step < 1500; ++step) {
      const auto any = [&] {
        return std::next(truth.begin(), static_cast<ptrdiff_t>(random() % truth.size()));
      };
      const uint64_t what = random() % 40;
      if (truth.empty() || (what < 8 && truth.size() < most)) {
        EXPECT_TRUE(truth.try_emplace(index.Add()).second);
      } else if (what == 8) {
        std::vector<PrefixIndex::Slot> gone;  // several at once
        for (size_t count = 1 + random() % 4; count > 0 && !truth.empty(); --count) {
          gone.push_back(any()->first);
          truth.erase(gone.back());
        }
        index.Remove(gone);
      } else if (what == 9) {
        const auto lost = any();
        index.Clear(lost->first);
        lost->second.clear();
      } else {
        auto& [slot, held] = *any();
        PrefixDelta delta{.is_snapshot = what < 14};
        std::set<uint64_t> now = delta.is_snapshot ? std::set<uint64_t>() : held;
        for (const uint64_t key : chain) {
          if (random() % 3 != 0) continue;
          if (now.erase(key) > 0) {
            delta.removed.push_back(key);
          } else {
            now.insert(key);
            delta.added.push_back(key);
          }
        }
        for (const uint64_t key : now) delta.digest ^= key;
        const bool is_wrong = what == 39;
        if (is_wrong) delta.digest ^= 1;
        EXPECT_EQ(index.Apply(slot, delta), !is_wrong);
        held = is_wrong ? std::set<uint64_t>() : now;
      }
      std::vector<uint32_t> matched;
      index.Match(chain, matched);
      for (const auto& [slot, held] : truth) {
        uint32_t want = 0;
        while (want < chain.size() && held.contains(chain[want])) ++want;
        ASSERT_EQ(matched[slot], want) << "step " << step << ", slot " << slot;
        ASSERT_EQ(index.keys_of(slot), held.size());
      }
    }
  }
}

}  // namespace
}  // namespace terrace
