#include "base/byte_budget.h"

#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(ByteBudget, LeasesShareItUpToItsLimit) {
  const auto budget = std::make_shared<ByteBudget>(100);
  ByteLease first(budget), second(budget);
  EXPECT_TRUE(first.Resize(60));
  EXPECT_FALSE(second.Resize(41));
  EXPECT_EQ(second.bytes(), 0u) << "a refusal changes nothing";
  EXPECT_EQ(budget->used(), 60u);
  EXPECT_TRUE(second.Resize(40));
  EXPECT_FALSE(first.Resize(61));
  EXPECT_TRUE(first.Resize(10)) << "less is always possible";
  EXPECT_TRUE(second.Resize(90));
  EXPECT_EQ(budget->used(), 100u);
}

TEST(ByteBudget, WhatALeaseHeldComesBackWhenItGoes) {
  const auto budget = std::make_shared<ByteBudget>(100);
  {
    ByteLease lease(budget);
    ASSERT_TRUE(lease.Resize(100));
  }
  EXPECT_EQ(budget->used(), 0u);
}

TEST(ByteBudget, AMovedLeaseIsHeldOnce) {
  const auto budget = std::make_shared<ByteBudget>(100);
  ByteLease from(budget), to(budget);
  ASSERT_TRUE(from.Resize(60) && to.Resize(40));
  to = std::move(from);
  EXPECT_EQ(to.bytes(), 60u);
  EXPECT_EQ(budget->used(), 60u) << "the 40 are back";
  const ByteLease last(std::move(to));
  EXPECT_EQ(last.bytes(), 60u);
  EXPECT_EQ(budget->used(), 60u);
}

TEST(ByteBudget, ALeaseOfNoneHoldsNothing) {
  ByteLease lease;
  EXPECT_TRUE(lease.Resize(0));
  EXPECT_FALSE(lease.Resize(1));
}

TEST(ByteBudget, ThreadsNeverHoldMoreThanThereIsAndReturnAll) {
  const auto budget = std::make_shared<ByteBudget>(10);
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&budget] {
      for (size_t i = 0; i < 10'000; ++i) {
        ByteLease lease(budget);
        lease.Resize(i % 12);
        EXPECT_LE(budget->used(), 10u);
      }
    });
  }
  threads.clear();
  EXPECT_EQ(budget->used(), 0u);
}

}  // namespace
}  // namespace terrace
