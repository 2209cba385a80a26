#include "kernels/quant/int8_device.h"

#include <cmath>

#include "gtest/gtest.h"

namespace terrace {
namespace {

// Every code, the points between two, which go to the even one, and the floats beside these.
TEST(Int8Device, RoundsToTheNearestCode) {
  for (int code = -127; code <= 127; ++code) {
    for (const float value : {static_cast<float>(code), static_cast<float>(code) + 0.49999f,
                              static_cast<float>(code) - 0.49999f}) {
      EXPECT_EQ(PackInt8(value, 0, 0, 0), static_cast<uint8_t>(code)) << value;
    }
    if (code == 127) break;
    const int even = code % 2 == 0 ? code : code + 1;
    EXPECT_EQ(PackInt8(static_cast<float>(code) + 0.5f, 0, 0, 0), static_cast<uint8_t>(even)) << code;
  }
}

TEST(Int8Device, PacksTheFirstLowest) { EXPECT_EQ(PackInt8(1, -2, 127, -127), 0x817ffe01u); }

TEST(Int8Device, ARowIsScaledToItsLargest) {
  for (const float largest : {127.0f, 1.0f, 3e38f, kSmallestInt8Row, 0.1f}) {
    const CodeRow row = Int8RowOf(Magnitude(-largest));
    EXPECT_EQ(row.scale, largest / 127);
    EXPECT_EQ(PackInt8(largest * row.inverse, -largest * row.inverse, 0, 0), 0x817fu) << largest;
  }
  for (const float nothing : {0.0f, 1e-40f, std::nextafter(kSmallestInt8Row, 0.0f)}) {
    EXPECT_EQ(Int8RowOf(Magnitude(nothing)).scale, 0);
    EXPECT_EQ(Int8RowOf(Magnitude(nothing)).inverse, 0);
  }
  for (const float broken : {INFINITY, -INFINITY, NAN, -NAN}) {
    EXPECT_TRUE(std::isnan(Int8RowOf(Magnitude(broken)).scale));
  }
}

}  // namespace
}  // namespace terrace
