#include "kernels/quant/e4m3_device.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/quant/e4m3_testing.h"
#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

// The nearest of all codes; of two, the even one.
uint32_t NearestCode(float value) {
  uint32_t best = 0;
  const double magnitude = std::min(std::abs(double{value}), 1e9);
  for (uint32_t code = 1; code < 0x7f; ++code) {
    const double gain = std::abs(magnitude - E4M3Value(best)) - std::abs(magnitude - E4M3Value(code));
    if (gain > 0 || (gain == 0 && code % 2 == 0)) best = code;
  }
  return best | (std::signbit(value) ? 0x80 : 0);
}

// Every code, every point between two, and the floats beside these; a walk over all floats.
TEST(E4M3Device, RoundsToTheNearestCode) {
  std::vector<float> values = {0, 448, 464, 480, 1e30f, INFINITY, 1e-45f};
  for (uint32_t code = 0; code < 0x7e; ++code) {
    values.push_back(static_cast<float>(E4M3Value(code)));
    values.push_back(static_cast<float>((E4M3Value(code) + E4M3Value(code + 1)) / 2));
  }
  for (size_t i = values.size(); i-- > 0;) {
    values.push_back(std::nextafter(values[i], 0.0f));
    values.push_back(std::nextafter(values[i], INFINITY));
  }
  for (uint32_t bits = 0; bits < kInfinityBits; bits += 104729) values.push_back(simt::FloatOfBits(bits));
  for (const float value : values) {
    EXPECT_EQ(E4M3Code(value), NearestCode(value)) << value;
    EXPECT_EQ(E4M3Code(-value), NearestCode(-value)) << -value;
  }
}

TEST(E4M3Device, NaNStaysNaN) {
  EXPECT_EQ(E4M3Code(NAN), 0x7fu);
  EXPECT_EQ(E4M3Code(-NAN), 0x7fu);
}

TEST(E4M3Device, EveryCodeIsItsF16) {
  for (uint32_t code = 0; code < 256; ++code) {
    const uint32_t other = 255 - code, word = code | other << 8 | other << 16 | code << 24;
    for (uint32_t pair = 0; pair < 2; ++pair) {
      const uint32_t two = F16OfE4M3(word, pair);
      const float got[2] = {simt::F16Low(two), simt::F16High(two)};
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t its = i == pair ? code : other;
        if ((its & 0x7f) == 0x7f) {
          EXPECT_TRUE(std::isnan(got[i])) << its;
        } else {
          EXPECT_EQ(got[i], E4M3Value(its)) << its;
          EXPECT_EQ(std::signbit(got[i]), its >= 0x80) << its;
        }
      }
    }
  }
}

// A walk over all floats, and the edge of what there is a code for.
TEST(E4M3Device, WhatHasNoCodeIsNaNAsOnTheHost) {
  std::vector<float> values = {464, std::nextafter(464.0f, 465.0f), 480, INFINITY, NAN};
  for (uint32_t bits = 0; bits < 0xff800000; bits += 104729) values.push_back(simt::FloatOfBits(bits));
  for (const float value : values) {
    const uint32_t codes = PackE4M3OrNaN(value, -value, 1, value), want = E4M3FromFloat(value);
    EXPECT_EQ(codes, want | uint32_t{E4M3FromFloat(-value)} << 8 | 0x38u << 16 | want << 24) << value;
  }
}

TEST(E4M3Device, PacksTheFirstLowest) { EXPECT_EQ(PackE4M3(0, 1, -2, 448), 0x7ec03800u); }

TEST(E4M3Device, ARowIsScaledToItsLargest) {
  for (const float largest : {448.0f, 1.0f, 3e38f, kSmallestE4M3Row, 0.1f}) {
    const CodeRow row = E4M3RowOf(Magnitude(-largest));
    EXPECT_EQ(row.scale, largest / 448);
    EXPECT_EQ(E4M3Code(largest * row.inverse), 0x7eu) << largest;
  }
  for (const float nothing : {0.0f, 1e-40f, std::nextafter(kSmallestE4M3Row, 0.0f)}) {
    EXPECT_EQ(E4M3RowOf(Magnitude(nothing)).scale, 0);
    EXPECT_EQ(E4M3RowOf(Magnitude(nothing)).inverse, 0);
  }
  for (const float broken : {INFINITY, -INFINITY, NAN, -NAN}) {
    EXPECT_TRUE(std::isnan(E4M3RowOf(Magnitude(broken)).scale));
  }
}

}  // namespace
}  // namespace terrace
