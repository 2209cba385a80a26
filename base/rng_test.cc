#include "base/rng.h"

#include <set>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(Philox, EqualsTheKnownAnswersOfItsAuthors) {  // Random123 1.09, tests/kat_vectors
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(RandomUniform, IsAFunctionOfSeedAndCounterAndStaysBelowOne) {
  double sum = 0;
  for (uint64_t i = 0; i < 10000; ++i) {
    const double value = RandomUniform(/*seed=*/7, i);
    EXPECT_EQ(value, RandomUniform(7, i));
    EXPECT_GE(value, 0.0);
    EXPECT_LT(value, 1.0);
    sum += value;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 5 * 0.2887 / 100);  // 5 standard errors of the mean of 10,000 uniforms
}

TEST(ChoiceSeed, KeepsTheFirstSeedAndGivesEveryOtherChoiceItsOwn) {
  std::set<uint64_t> seen;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{42}, UINT64_MAX}) {
    EXPECT_EQ(ChoiceSeed(seed, 0), seed);
    for (uint32_t choice = 0; choice < 16; ++choice) {
      EXPECT_TRUE(seen.insert(ChoiceSeed(seed, choice)).second) << seed << " " << choice;
      EXPECT_EQ(ChoiceSeed(seed, choice), ChoiceSeed(seed, choice));
    }
  }
}

}  // namespace
}  // namespace terrace
