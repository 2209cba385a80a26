#include "router/admission/token_pace.h"

#include <cmath>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(TokenPace, IsKnownFromTheFirstTokensOnForAWhile) {
  TokenPace pace;
  const MonoTime start{};
  EXPECT_FALSE(pace.SecondsPerToken(start).has_value());
  pace.Add(/*seconds=*/2, /*tokens=*/4, start);
  EXPECT_DOUBLE_EQ(pace.SecondsPerToken(start + kSpeedRemembered - Duration(1)).value_or(-1), 0.5);
  EXPECT_FALSE(pace.SecondsPerToken(start + kSpeedRemembered).has_value());
  pace.Add(1, 10, start + kSpeedRemembered);
  EXPECT_DOUBLE_EQ(*pace.SecondsPerToken(start + kSpeedRemembered), 0.1) << "nothing of before is left";
}

TEST(TokenPace, FollowsTheLatestTokensHoweverTheyAreCounted) {
  TokenPace together, one_by_one;
  for (TokenPace* pace : {&together, &one_by_one}) pace->Add(1, 10, MonoTime());
  constexpr int kTokens = static_cast<int>(TokenPace::kTokens);
  together.Add(0.5 * kTokens, kTokens, MonoTime());
  for (int i = 0; i < kTokens; ++i) one_by_one.Add(0.5, 1, MonoTime());
  const double want = 0.5 + (0.1 - 0.5) / std::exp(1.0);
  EXPECT_NEAR(*together.SecondsPerToken(MonoTime()), want, 1e-9);
  EXPECT_NEAR(*one_by_one.SecondsPerToken(MonoTime()), want, 1e-9);
}

}  // namespace
}  // namespace terrace
