#include "worker/engine/speculation_stats.h"

#include <string>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(SpeculationStats, EveryPlaceInADraftHasTheNameOfItsRange) {
  const char* const names[] = {"1", "2", "3", "4", "5-8", "5-8", "5-8", "5-8", "9+", "9+"};
  for (uint32_t index = 0; index < std::size(names); ++index) {
    const size_t position = SpeculationStats::PositionOf(index);
    ASSERT_LT(position, SpeculationStats::kPositions);
    EXPECT_EQ(SpeculationStats::kPositionNames[position], std::string(names[index]));
  }
  EXPECT_EQ(SpeculationStats::PositionOf(63), SpeculationStats::kPositions - 1);
}

TEST(SpeculationStats, WhatCameSinceIsTheDifference) {
  SpeculationStats before;
  before.drafter = "ngram";
  before.proposed[0] = 12;
  before.verified[0] = 10, before.accepted[0] = 7;
  before.verified[5] = 4, before.accepted[5] = 1;
  before.branch_proposed = 8;
  before.branch_verified = 6, before.branch_accepted = 1;
  before.passes = 10;
  before.drafting_seconds = 0.5;
  before.saved_seconds = -0.25;
  SpeculationStats now = before;
  now.proposed[0] += 6, now.proposed[4] += 3;
  now.verified[0] += 5, now.accepted[0] += 4;
  now.verified[4] += 3, now.accepted[4] += 2;
  now.branch_proposed += 5;
  now.branch_verified += 4, now.branch_accepted += 2;
  now.passes += 5;
  now.failures = 1;
  now.drafting_seconds += 0.125;
  now.saved_seconds += 2;
  const SpeculationStats since = now.Since(before);
  EXPECT_EQ(since.drafter, "ngram");
  EXPECT_EQ(since.proposed, (SpeculationStats::Tokens{6, 0, 0, 0, 3, 0}));
  EXPECT_EQ(since.verified, (SpeculationStats::Tokens{5, 0, 0, 0, 3, 0}));
  EXPECT_EQ(since.accepted, (SpeculationStats::Tokens{4, 0, 0, 0, 2, 0}));
  EXPECT_EQ(SpeculationStats::Sum(since.verified), 8u);
  EXPECT_EQ(since.branch_proposed, 5u);
  EXPECT_EQ(since.branch_verified, 4u);
  EXPECT_EQ(since.branch_accepted, 2u);
  EXPECT_EQ(since.passes, 5u);
  EXPECT_EQ(since.failures, 1u);
  EXPECT_EQ(since.drafting_seconds, 0.125);
  EXPECT_EQ(since.saved_seconds, 2);
  EXPECT_DOUBLE_EQ(since.tokens_per_pass(), 1 + 8.0 / 5);
  EXPECT_EQ(SpeculationStats().tokens_per_pass(), 1);
}

}  // namespace
}  // namespace terrace
