#include "kernels/moe/expert_groups.h"

#include <algorithm>
#include <random>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(ExpertGroups, PairsAreSortedByExpertAndKeepTheirOrder) {
  ExpertGroups groups;  // one memory for all
  for (const size_t experts : {1, 2, 8, 128}) {
    for (const size_t count : {0, 1, 7, 96, 560}) {
      std::mt19937 random(static_cast<uint32_t>(experts + count));
      std::vector<uint32_t> chosen(count);
      for (uint32_t& expert : chosen) expert = static_cast<uint32_t>(random() % experts);
      GroupPairs(chosen, experts, groups);
      std::vector<uint32_t> want(count);
      for (size_t i = 0; i < count; ++i) want[i] = static_cast<uint32_t>(i);
      std::ranges::stable_sort(want, {}, [&](uint32_t pair) { return chosen[pair]; });
      EXPECT_EQ(groups.pairs, want);
      ASSERT_EQ(groups.experts(), experts);
      for (size_t place = 0; place < count; ++place) EXPECT_EQ(groups.places[groups.pairs[place]], place);
      for (size_t expert = 0; expert < experts; ++expert) {
        EXPECT_EQ(groups.begin[expert],
                  std::ranges::count_if(chosen, [&](uint32_t e) { return e < expert; }));
        EXPECT_EQ(groups.TokensOf(expert), std::ranges::count(chosen, static_cast<uint32_t>(expert)));
      }
    }
  }
}

}  // namespace
}  // namespace terrace
