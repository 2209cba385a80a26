#include "tools/optimize/random_weights.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

std::vector<float> Row(const RandomMatrix& matrix, uint64_t row, size_t columns) {
  std::vector<float> values(columns);
  matrix.FillRow(row, values);
  return values;
}

TEST(RandomMatrix, FollowsFromSeedNameAndRow) {
  constexpr size_t kColumns = 33;
  const RandomMatrix matrix(7, "a", kColumns);
  EXPECT_EQ(Row(matrix, 5, kColumns), Row(RandomMatrix(7, "a", kColumns), 5, kColumns));
  EXPECT_NE(Row(matrix, 5, kColumns), Row(matrix, 6, kColumns));
  EXPECT_NE(Row(matrix, 5, kColumns), Row(RandomMatrix(7, "b", kColumns), 5, kColumns));
  EXPECT_NE(Row(matrix, 5, kColumns), Row(RandomMatrix(8, "a", kColumns), 5, kColumns));
  EXPECT_NE(Row(matrix, 5, kColumns), Row(RandomMatrix(7 + (uint64_t{1} << 32), "a", kColumns), 5, kColumns));
}

TEST(RandomMatrix, LooksNormalWithVarianceOneOverColumns) {
  constexpr size_t kColumns = 1024, kRows = 256, kCount = kColumns * kRows;
  const RandomMatrix matrix(1, "w", kColumns);
  double sum = 0, squares = 0, fourths = 0, neighbours = 0;
  for (uint64_t row = 0; row < kRows; ++row) {
    float before = 0;
    for (const float value : Row(matrix, row, kColumns)) {
      const double x = value * std::sqrt(double{kColumns});  // variance 1
      EXPECT_LE(std::abs(x), 3.47);
      sum += x;
      squares += x * x;
      fourths += x * x * x * x;
      neighbours += x * before;
      before = static_cast<float>(x);
    }
  }
  // Five standard errors of each mean; the fourth moment of a sum of four uniforms is 3 - 1.2/4.
  const double error = 5 / std::sqrt(double{kCount});
  EXPECT_NEAR(sum / kCount, 0, error);
  EXPECT_NEAR(squares / kCount, 1, 1.4 * error);
  EXPECT_NEAR(fourths / kCount, 2.7, 8 * error);
  EXPECT_NEAR(neighbours / kCount, 0, error);
}

}  // namespace
}  // namespace terrace
