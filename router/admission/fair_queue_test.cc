#include "router/admission/fair_queue.h"

#include <algorithm>
#include <set>

#include "base/fake_clock.h"
#include "base/rng.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using std::chrono::seconds;

class FairQueueTest : public ::testing::Test {
 protected:
  FairQueue::Id Push(const std::string& tenant, uint64_t tokens, double weight = 1, int32_t priority = 0,
                     MonoTime latest = MonoTime::max()) {
    queue_.Push({.id = ++last_,
                 .tenant = tenant,
                 .weight = weight,
                 .priority = priority,
                 .tokens = tokens,
                 .latest = latest});
    return last_;
  }
  FairQueue::Id Pop() { return queue_.Pop().value_or(FairQueue::Entry{}).id; }

  FairQueue queue_;
  FairQueue::Id last_ = 0;
};

TEST_F(FairQueueTest, OneTenantIsServedByPriorityAndThenInOrder) {
  const auto first = Push("a", 1), second = Push("a", 1), high = Push("a", 1, 1, 5);
  EXPECT_EQ(Pop(), high);
  EXPECT_EQ(Pop(), first);
  EXPECT_EQ(Pop(), second);
  EXPECT_FALSE(queue_.Pop().has_value());
}

// While both wait, what each was served is in the ratio of the weights, within one entry of each.
TEST_F(FairQueueTest, WaitingTenantsGetTokensByWeight) {
  constexpr uint64_t kSeed = 42, kLargest = 100;
  for (int i = 0; i < 400; ++i) {
    Push("light", 1 + RandomBits(kSeed, i) % kLargest, 1);
    Push("heavy", 1 + RandomBits(kSeed + 1, i) % kLargest, 3);
  }
  double light = 0, heavy = 0;
  for (int i = 0; i < 400; ++i) {
    const auto entry = queue_.Pop();
    (entry->tenant == "light" ? light : heavy) += static_cast<double>(entry->tokens);
    EXPECT_LE(std::abs(light - heavy / 3), kLargest + kLargest / 3.0) << "after " << i;
  }
}

TEST_F(FairQueueTest, AFloodOfOneTenantDelaysAnotherByOneEntryOnly) {
  for (int i = 0; i < 1000; ++i) Push("flood", 10);
  for (int i = 0; i < 500; ++i) Pop();
  const auto one = Push("quiet", 10);
  const auto first = Pop(), second = Pop();
  EXPECT_TRUE(first == one || second == one);
}

TEST_F(FairQueueTest, NobodySavesUpWhileAway) {
  Push("away", 1);
  Pop();
  for (int i = 0; i < 1000; ++i) Push("busy", 10);
  for (int i = 0; i < 900; ++i) Pop();
  for (int i = 0; i < 100; ++i) Push("away", 10);
  int away = 0;
  for (int i = 0; i < 50; ++i) away += queue_.Pop()->tenant == "away";
  EXPECT_NEAR(away, 25, 1);
}

TEST_F(FairQueueTest, AnAnswerThatCostMoreThanExpectedIsPaidForInTurns) {
  for (int i = 0; i < 10; ++i) Push("a", 10), Push("b", 10);
  queue_.Charge("a", 1, 30);
  int b = 0;
  for (int i = 0; i < 3; ++i) b += queue_.Pop()->tenant == "b";
  EXPECT_EQ(b, 3);
}

TEST_F(FairQueueTest, ErasedAndExpiredEntriesAreGoneOnce) {
  FakeClock clock;
  const auto erased = Push("a", 1), kept = Push("a", 1);
  const auto expired = Push("b", 1, 1, 0, clock.Now() + seconds(1));
  EXPECT_TRUE(queue_.Erase(erased));
  EXPECT_FALSE(queue_.Erase(erased));
  EXPECT_TRUE(queue_.Expire(clock.Now() + seconds(1)).empty());
  const auto late = queue_.Expire(clock.Now() + seconds(2));
  ASSERT_EQ(late.size(), 1u);
  EXPECT_EQ(late[0].id, expired);
  EXPECT_EQ(queue_.size(), 1u);
  EXPECT_EQ(Pop(), kept);
}

TEST_F(FairQueueTest, WhatIsAheadIsTheWholeQueueForTheFloodAndLittleForTheQuiet) {
  for (int i = 0; i < 100; ++i) Push("flood", 10);
  EXPECT_EQ(queue_.TokensAhead("flood", 1, 0), 1000);
  EXPECT_EQ(queue_.TokensAhead("flood", 1, 1), 0) << "before all of its own";
  EXPECT_EQ(queue_.TokensAhead("quiet", 1, 0), 0);
  Push("quiet", 10);
  EXPECT_EQ(queue_.TokensAhead("quiet", 1, 0), 20);
  EXPECT_EQ(queue_.TokensAhead("quiet", 1, -1), 20);
  EXPECT_EQ(queue_.TokensAhead("flood", 1, 0), 1010);
}

TEST_F(FairQueueTest, RoomIsMadeByWhoHasMostOfItForItsWeight) {
  for (int i = 0; i < 6; ++i) Push("heavy", 1, 3);
  Push("flood", 1, 1, 5);
  for (int i = 0; i < 3; ++i) Push("flood", 1);
  const auto last = last_;
  EXPECT_TRUE(queue_.CanMakeRoom("quiet", 1));
  EXPECT_EQ(queue_.MakeRoom("quiet", 1)->id, last) << "the newest of the least priority";
  EXPECT_EQ(queue_.MakeRoom("heavy", 3)->tenant, "flood");
  EXPECT_FALSE(queue_.MakeRoom("flood", 1).has_value());
  while (queue_.MakeRoom("quiet", 1).has_value()) continue;
  EXPECT_EQ(queue_.size(), 3u + 1u) << "nobody has more for its weight than it would have";
}

// Any order of calls: every entry comes out once, and sizes add up.
TEST_F(FairQueueTest, NothingIsLostOrDoubled) {
  constexpr uint64_t kSeed = 7;
  std::set<FairQueue::Id> inside;
  for (int i = 0; i < 20'000; ++i) {
    const uint64_t bits = RandomBits(kSeed, i);
    const std::string tenant(1, static_cast<char>('a' + bits / 8 % 5));
    switch (bits % 4) {
      case 0:
      case 1:
        inside.insert(Push(tenant, 1 + bits / 64 % 100, 1 + bits / 8 % 5, bits / 64 % 3));
        break;
      case 2:
        if (const auto entry = queue_.Pop(); entry.has_value()) {
          EXPECT_EQ(inside.erase(entry->id), 1u) << "seed " << kSeed << " step " << i;
        } else {
          EXPECT_TRUE(inside.empty());
        }
        break;
      default:
        if (!inside.empty()) {
          EXPECT_TRUE(queue_.Erase(*inside.begin()));
          inside.erase(inside.begin());
        }
    }
    ASSERT_EQ(queue_.size(), inside.size()) << "seed " << kSeed << " step " << i;
  }
}

}  // namespace
}  // namespace terrace
