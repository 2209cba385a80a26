#include "tools/bench/arrivals.h"

#include <cmath>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(Arrivals, ConstantOnesAreEvenlySpacedFromZeroWithoutDrift) {
  Arrivals arrivals(ArrivalKind::kConstant, 3, /*seed=*/1);
  for (int i = 0; i < 100'000; ++i) ASSERT_EQ(arrivals.Next(), i / 3.0);
}

TEST(Arrivals, PoissonGapsHaveTheMeanAndTheSpreadOfExponentialOnes) {
  constexpr int kCount = 200'000;
  for (const double rate : {0.5, 2.5, 1000.0}) {
    SCOPED_TRACE(rate);
    Arrivals arrivals(ArrivalKind::kPoisson, rate, /*seed=*/7);
    double last = 0, sum_of_squares = 0;
    for (int i = 0; i < kCount; ++i) {
      const double next = arrivals.Next();
      ASSERT_GE(next, last);
      sum_of_squares += (next - last) * (next - last);
      last = next;
    }
    // The mean of n exponential gaps has the relative deviation 1/sqrt(n), of their squares sqrt(5/n): 5 of
    // them.
    EXPECT_NEAR(last / kCount * rate, 1, 5 / std::sqrt(kCount));
    EXPECT_NEAR(sum_of_squares / kCount * rate * rate, 2, 2 * 5 * std::sqrt(5.0 / kCount));
  }
}

TEST(Arrivals, ASeedGivesTheSameArrivalsAgainAndAnotherOneOthers) {
  Arrivals first(ArrivalKind::kPoisson, 10, 1), again(ArrivalKind::kPoisson, 10, 1),
      other(ArrivalKind::kPoisson, 10, 2);
  for (int i = 0; i < 1000; ++i) {
    const double at = first.Next();
    EXPECT_EQ(at, again.Next());
    EXPECT_NE(at, other.Next());
  }
}

}  // namespace
}  // namespace terrace
