#include "kernels/scalar_convert.h"

#include <cmath>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(ScalarConvert, EveryF16IsItsDefinition) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = (bits >> 10) & 31;
    const double mantissa = bits & 1023;
    double want = exponent == 0    ? std::ldexp(mantissa, -24)
                  : exponent == 31 ? (mantissa == 0 ? INFINITY : NAN)
                                   : std::ldexp(1024 + mantissa, exponent - 25);
    if ((bits & 0x8000) != 0) want = -want;
    const float got = FloatFromF16(static_cast<uint16_t>(bits));
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got)) << bits;
    } else {
      EXPECT_EQ(got, want) << bits;
      EXPECT_EQ(std::signbit(got), std::signbit(want)) << bits;
    }
  }
}

TEST(ScalarConvert, BF16IsTheUpperHalfOfAnF32) {
  EXPECT_EQ(FloatFromBF16(0x3f80), 1.0f);
  EXPECT_EQ(FloatFromBF16(0xc0a0), -5.0f);
  EXPECT_TRUE(std::isinf(FloatFromBF16(0x7f80)));
}

}  // namespace
}  // namespace terrace
