#include "base/median.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(Median, IsTheMiddleOfTheSortedValuesOrTheLargerOfTheTwo) {
  EXPECT_EQ(Median({3}), 3);
  EXPECT_EQ(Median({3, 1}), 3);
  EXPECT_EQ(Median({9, 1, 5}), 5);
  EXPECT_EQ(Median({4, 4, 1, 9}), 4);
  EXPECT_EQ(Median({-1, 7, 2, 8, 0, 5}), 5);
}

}  // namespace
}  // namespace terrace
