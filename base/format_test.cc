#include "base/format.h"

#include <limits>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(FormatFixed, HasSoManyDecimals) {
  EXPECT_EQ(FormatFixed(0.8571, 3), "0.857");
  EXPECT_EQ(FormatFixed(2.5, 0), "2");
  EXPECT_EQ(FormatFixed(-1, 2), "-1.00");
  EXPECT_EQ(FormatFixed(1e300, 1).size(), 63u) << "not all of it";
}

TEST(FormatSignificant, HasThreeDigitsThatCount) {
  EXPECT_EQ(FormatSignificant(0.000485008), "0.000485");
  EXPECT_EQ(FormatSignificant(0.0012), "0.00120");
  EXPECT_EQ(FormatSignificant(0.9996), "1.00");
  EXPECT_EQ(FormatSignificant(2.5), "2.50");
  EXPECT_EQ(FormatSignificant(12.34), "12.3");
  EXPECT_EQ(FormatSignificant(1234.5), "1234");
  EXPECT_EQ(FormatSignificant(-0.05), "-0.0500");
  EXPECT_EQ(FormatSignificant(1e-6), "0.00000100");
  EXPECT_EQ(FormatSignificant(0), "0.00");
  EXPECT_EQ(FormatSignificant(std::numeric_limits<double>::infinity()), "inf");
}

TEST(FormatMillis, IsOfSeconds) {
  EXPECT_EQ(FormatMillis(0.01234), "12.3 ms");
  EXPECT_EQ(FormatMillis(0), "0.00 ms");
}

}  // namespace
}  // namespace terrace
