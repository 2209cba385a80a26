#include "tools/report/significant.h"

#include <limits>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(Significant, HasThreeDigitsThatCount) {
  EXPECT_EQ(Significant(0.000485008), "0.000485");
  EXPECT_EQ(Significant(0.0012), "0.00120");
  EXPECT_EQ(Significant(0.9996), "1.00");
  EXPECT_EQ(Significant(2.5), "2.50");
  EXPECT_EQ(Significant(12.34), "12.3");
  EXPECT_EQ(Significant(1234.5), "1234");
  EXPECT_EQ(Significant(-0.05), "-0.0500");
  EXPECT_EQ(Significant(1e-6), "0.00000100");
  EXPECT_EQ(Significant(0), "0.00");
  EXPECT_EQ(Significant(std::numeric_limits<double>::infinity()), "inf");
}

}  // namespace
}  // namespace terrace
