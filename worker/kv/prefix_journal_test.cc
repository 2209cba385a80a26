#include "worker/kv/prefix_journal.h"

#include <random>
#include <set>

#include "gtest/gtest.h"

namespace terrace {
namespace {

// What a router does with deltas.
struct Follower {
  std::optional<uint64_t> position;
  std::set<uint64_t> held;
  size_t snapshots = 0;

  PrefixJournal::Delta Follow(const PrefixJournal& journal) {
    PrefixJournal::Delta delta = journal.Since(position);
    position = delta.position;
    snapshots += delta.is_snapshot;
    if (delta.is_snapshot) held.clear();
    for (const uint64_t key : delta.removed) held.erase(key);
    for (const uint64_t key : delta.added) held.insert(key);
    uint64_t digest = 0;
    for (const uint64_t key : held) digest ^= key;
    EXPECT_EQ(digest, delta.digest);
    return delta;
  }
};

TEST(PrefixJournal, TheFirstAnswerIsASnapshotAndTheNextOnesAreChanges) {
  PrefixJournal journal;
  journal.Append(std::vector<PrefixChange>{{7, true}, {9, true}});
  Follower follower;
  EXPECT_TRUE(follower.Follow(journal).is_snapshot);
  EXPECT_EQ(follower.held, (std::set<uint64_t>{7, 9}));
  journal.Append(std::vector<PrefixChange>{{7, false}, {11, true}});
  const PrefixJournal::Delta delta = follower.Follow(journal);
  EXPECT_FALSE(delta.is_snapshot);
  EXPECT_EQ(delta.added, std::vector<uint64_t>{11});
  EXPECT_EQ(delta.removed, std::vector<uint64_t>{7});
  const PrefixJournal::Delta nothing = follower.Follow(journal);
  EXPECT_TRUE(nothing.added.empty() && nothing.removed.empty() && !nothing.is_snapshot);
}

TEST(PrefixJournal, AnEmptyCacheIsASnapshotToo) {
  Follower follower;
  const PrefixJournal journal;
  EXPECT_TRUE(follower.Follow(journal).is_snapshot);
  EXPECT_TRUE(follower.held.empty());
}

TEST(PrefixJournal, WhatIsSaidTwiceIsNotCountedTwice) {
  PrefixJournal journal;
  Follower follower;
  follower.Follow(journal);
  journal.Append(std::vector<PrefixChange>{{7, true}, {7, true}, {8, false}});
  follower.Follow(journal);
  EXPECT_EQ(follower.held, std::set<uint64_t>{7});
  journal.Append(std::vector<PrefixChange>{{7, false}});
  follower.Follow(journal);
  EXPECT_TRUE(follower.held.empty());
}

// Followers of any pace agree with the truth, whether their past is remembered or not.
TEST(PrefixJournal, FollowersOfAnyPaceAgreeWithTheCache) {
  for (const size_t history : {0, 1, 5, 1000}) {
    for (uint32_t seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE(testing::Message() << "history " << history << ", seed " << seed);
      std::mt19937 random(seed);
      PrefixJournal journal(history);
      std::set<uint64_t> truth;
      Follower followers[4];
      for (int step = 0; step < 200; ++step) {
        std::vector<PrefixChange> changes(random() % 4);
        for (PrefixChange& change : changes) {
          change = {0x9e3779b97f4a7c15u * (1 + random() % 12), random() % 2 == 0};
          change.is_added ? static_cast<void>(truth.insert(change.key))
                          : static_cast<void>(truth.erase(change.key));
        }
        journal.Append(changes);
        for (size_t i = 0; i < std::size(followers); ++i) {
          if (random() % (1 + 7 * i) != 0) continue;
          followers[i].Follow(journal);
          EXPECT_EQ(followers[i].held, truth);
        }
      }
      if (history >= 1000) {
        for (const Follower& follower : followers) EXPECT_EQ(follower.snapshots, 1u);
      }
    }
  }
}

}  // namespace
}  // namespace terrace
