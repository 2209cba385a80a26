// The plain C++ lanes, as in exp_test.cc.
#include "kernels/simd/vec16_generic.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "gtest/gtest.h"
#include "kernels/simd/tanh.h"

namespace terrace {
namespace {

float TanhOf(float x) { return First(Tanh(Splat(x))); }

TEST(Tanh, IsWithinItsBoundEverywhere) {
  double worst = 0;
  const auto check = [&](float x) {
    for (const float each : {x, -x})
      worst = std::max(worst, std::abs(TanhOf(each) - std::tanh(double{each})));
  };
  for (size_t i = 0; i <= 500'000; ++i) check(static_cast<float>(i) * (20.0f / 500'000));
  for (uint32_t bits = 0; bits < 0x7f80'0000; bits += 9973) check(std::bit_cast<float>(bits));
  EXPECT_LT(worst, 3e-7);
}

TEST(Tanh, OfZeroIsZero) { EXPECT_EQ(TanhOf(0), 0.0f); }

TEST(Tanh, IsOneFarFromZeroAndKeepsNaN) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float x : {20.0f, 50.0f, 1e9f, std::numeric_limits<float>::max(), kInfinity}) {
    EXPECT_EQ(TanhOf(x), 1.0f) << x;
    EXPECT_EQ(TanhOf(-x), -1.0f) << x;
  }
  EXPECT_TRUE(std::isnan(TanhOf(std::numeric_limits<float>::quiet_NaN())));
}

}  // namespace
}  // namespace terrace
