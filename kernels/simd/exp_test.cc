// The plain C++ lanes are tested here; the others compute the same steps and meet the reference in the tests
// of gemm_fused and paged_attention.
#include <algorithm>
#include <cmath>
#include <limits>

#include "gtest/gtest.h"
#include "kernels/simd/vec16_generic.h"

#include "kernels/simd/exp.h"

namespace terrace {
namespace {

float ExpOf(float x) { return First(Exp(Splat(x))); }

TEST(Exp, IsWithinFourRoundings) {
  double worst = 0;
  constexpr float kLowest = -87.33654f, kHighest = 88.37f;
  for (size_t i = 0; i <= 500'000; ++i) {
    const float x = std::min(kHighest, kLowest + static_cast<float>(i) * ((kHighest - kLowest) / 500'000));
    const double want = std::exp(double{x});
    worst = std::max(worst, std::abs(ExpOf(x) - want) / want);
  }
  EXPECT_LT(worst, 2.5e-7);
}

TEST(Exp, OfZeroIsOne) { EXPECT_EQ(ExpOf(0), 1.0f); }

TEST(Exp, UnderflowsToZeroSaturatesAndKeepsNaN) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(ExpOf(-infinity), 0.0f);
  EXPECT_EQ(ExpOf(-87.4f), 0.0f);
  EXPECT_EQ(ExpOf(infinity), ExpOf(88.37f));
  EXPECT_TRUE(std::isfinite(ExpOf(infinity)));
  EXPECT_TRUE(std::isnan(ExpOf(std::numeric_limits<float>::quiet_NaN())));
}

}  // namespace
}  // namespace terrace
