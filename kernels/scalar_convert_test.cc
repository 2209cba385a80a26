#include "kernels/scalar_convert.h"

#include <cmath>
#include <limits>

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

// Between two neighbours of the format: each value nearer to one goes there, the middle to the even one.
template <typename From, typename To>
void ExpectRoundsToNearest(uint16_t low, From from, To to) {
  const uint16_t high = low + 1, even = low % 2 == 0 ? low : high;
  const float infinity = INFINITY;
  const double middle = (double{from(low)} + double{from(high)}) / 2;
  const auto f32_middle = static_cast<float>(middle);  // exact: one bit more than the format's
  for (const float sign : {1.0f, -1.0f}) {
    const auto signed_bits = [&](uint16_t bits) {
      return static_cast<uint16_t>(sign < 0 ? bits | 0x8000 : bits);
    };
    EXPECT_EQ(to(sign * from(low)), signed_bits(low));
    EXPECT_EQ(to(sign * std::nextafter(f32_middle, 0.0f)), signed_bits(low)) << low;
    EXPECT_EQ(to(sign * f32_middle), signed_bits(even)) << low;
    EXPECT_EQ(to(sign * std::nextafter(f32_middle, infinity)), signed_bits(high)) << low;
  }
}

TEST(ScalarConvert, EveryE4M3IsItsDefinition) {
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    const float got = FloatFromE4M3(static_cast<uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(got)) << code;
    } else {
      EXPECT_EQ(got, code < 0x80 ? magnitude : -magnitude) << code;
      EXPECT_EQ(std::signbit(got), code >= 0x80) << code;
    }
  }
}

TEST(ScalarConvert, F16IsRoundedToNearestTiesToEven) {
  for (uint16_t bits = 0; bits < 0x7bff; ++bits) ExpectRoundsToNearest(bits, FloatFromF16, F16FromFloat);
  EXPECT_EQ(F16FromFloat(65504), 0x7bff);
  EXPECT_EQ(F16FromFloat(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  for (const float beyond : {65520.0f, 1e6f, INFINITY}) {
    EXPECT_EQ(F16FromFloat(beyond), 0x7c00);
    EXPECT_EQ(F16FromFloat(-beyond), 0xfc00);
  }
  EXPECT_TRUE(std::isnan(FloatFromF16(F16FromFloat(NAN))));
}

TEST(ScalarConvert, E4M3IsRoundedToNearestTiesToEven) {
  for (uint8_t code = 0; code < 0x7e; ++code) {
    const float low = FloatFromE4M3(code), high = FloatFromE4M3(code + 1), middle = (low + high) / 2;
    EXPECT_EQ(E4M3FromFloat(low), code);
    EXPECT_EQ(E4M3FromFloat(-low), code | 0x80);
    EXPECT_EQ(E4M3FromFloat(middle), code % 2 == 0 ? code : code + 1);
    EXPECT_EQ(E4M3FromFloat(std::nextafter(middle, low)), code);
    EXPECT_EQ(E4M3FromFloat(-std::nextafter(middle, high)), 0x80 | (code + 1));
  }
  EXPECT_EQ(E4M3FromFloat(464), 0x7e);
  EXPECT_EQ(E4M3FromFloat(-464), 0xfe);
  for (const float beyond : {std::nextafter(464.0f, 465.0f), 480.0f, 1e9f, INFINITY, NAN}) {
    EXPECT_EQ(E4M3FromFloat(beyond), 0x7f);
    EXPECT_EQ(E4M3FromFloat(-beyond), 0x7f);
  }
}

TEST(ScalarConvert, BF16IsRoundedToNearestTiesToEven) {
  for (uint16_t bits = 0; bits < 0x7f7f; ++bits) ExpectRoundsToNearest(bits, FloatFromBF16, BF16FromFloat);
  EXPECT_EQ(BF16FromFloat(0.0f), 0);
  EXPECT_EQ(BF16FromFloat(-0.0f), 0x8000);
  EXPECT_EQ(BF16FromFloat(INFINITY), 0x7f80);
  EXPECT_EQ(BF16FromFloat(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(FloatFromBF16(BF16FromFloat(NAN))));
  const float low_payload = std::bit_cast<float>(0x7f800001);  // cutting it off would leave an infinity
  EXPECT_TRUE(std::isnan(FloatFromBF16(BF16FromFloat(low_payload))));
}

}  // namespace
}  // namespace terrace
