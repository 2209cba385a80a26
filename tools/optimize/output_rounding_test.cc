#include "tools/optimize/output_rounding.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "tools/optimize/testing_matrices.h"

namespace terrace {
namespace {

struct Case {
  DType dtype;
  uint32_t group;
};
constexpr Case kCases[] = {{DType::kInt4G32, 32}, {DType::kInt4G32, 64}, {DType::kInt4G128, 128},
                           {DType::kInt8, 0},     {DType::kQ8_0, 0},     {DType::kQ4_0, 0},
                           {DType::kQ5_0, 0},     {DType::kQ4_K, 0},     {DType::kQ6_K, 0}};

FloatMatrix RowOf(const FloatMatrix& matrix, size_t row) {
  const auto values = matrix.Row(row);
  return {1, matrix.columns, {values.begin(), values.end()}};
}

TEST(RoundForOutputs, NoRowLosesMoreThanWithLevelsChosenOneByOne) {
  ThreadPool pool(2);
  const auto [matrix, x] = MakeGptqInputs(/*rows=*/24, /*columns=*/256, /*tokens=*/600);
  const Hessian hessian = HessianOf(x);
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << Info(c.dtype).name << " " << c.group);
    const RowFormat format = RowFormat::Create(c.dtype, c.group, matrix.columns).value();
    const FloatMatrix joint =
                          Difference(RoundForOutputs(matrix, format, hessian, pool).ToFloat(pool), matrix),
                      single = Difference(
                          RoundToNearest(matrix, format, hessian.Diagonal(), pool).ToFloat(pool), matrix);
    for (size_t row = 0; row < matrix.rows; ++row) {
      const double most = OutputSquares(RowOf(single, row), hessian, pool);
      EXPECT_LE(OutputSquares(RowOf(joint, row), hessian, pool), most * (1 + 1e-9)) << row;
    }
    if (c.dtype == DType::kInt8) {
      EXPECT_TRUE(std::ranges::equal(joint.values, single.values)) << "it stays as it begins";
      continue;
    }
    const double less = format.block() > 128 ? 0.9 : 0.5;
    EXPECT_LE(OutputSquares(joint, hessian, pool), less * OutputSquares(single, hessian, pool));
  }
}

TEST(RoundForOutputs, WithInputsThatHaveNothingInCommonIsNoWorse) {
  ThreadPool pool(1);
  const FloatMatrix matrix = RandomFloats(16, 128, /*seed=*/1);
  const Hessian hessian = HessianOf(RandomFloats(2000, 128, /*seed=*/2));
  const RowFormat format = RowFormat::Create(DType::kInt4G32, 32, matrix.columns).value();
  EXPECT_LE(
      RelativeOutputError(matrix, RoundForOutputs(matrix, format, hessian, pool).ToFloat(pool), hessian,
                          pool),
      RelativeOutputError(matrix, RoundToNearest(matrix, format, hessian.Diagonal(), pool).ToFloat(pool),
                          hessian, pool));
}

TEST(RoundForOutputs, IsTheSameForAnyNumberOfThreads) {
  ThreadPool one(1), three(3);
  const auto [matrix, x] = MakeGptqInputs(/*rows=*/37, /*columns=*/256, /*tokens=*/300);
  const Hessian hessian = HessianOf(x);
  for (const Case& c : kCases) {
    const RowFormat format = RowFormat::Create(c.dtype, c.group, matrix.columns).value();
    EXPECT_EQ(RoundForOutputs(matrix, format, hessian, one).Bytes(),
              RoundForOutputs(matrix, format, hessian, three).Bytes())
        << Info(c.dtype).name;
  }
}

// More rows than take turns, and more columns than are added at once.
TEST(RoundForOutputs, EachRowIsAsItWouldBeAlone) {
  ThreadPool pool(2);
  const auto [matrix, x] = MakeGptqInputs(/*rows=*/19, /*columns=*/768, /*tokens=*/300);
  const Hessian hessian = HessianOf(x);
  for (const Case& c : kCases) {
    const RowFormat format = RowFormat::Create(c.dtype, c.group, matrix.columns).value();
    const FloatMatrix together = RoundForOutputs(matrix, format, hessian, pool).ToFloat(pool);
    for (const size_t row : {0, 7, 15, 16, 18}) {
      const FloatMatrix alone = RoundForOutputs(RowOf(matrix, row), format, hessian, pool).ToFloat(pool);
      EXPECT_TRUE(std::ranges::equal(together.Row(row), alone.values)) << Info(c.dtype).name << " " << row;
    }
  }
}

TEST(RoundForOutputs, ZerosStayZeros) {
  ThreadPool pool(1);
  auto [matrix, x] = MakeGptqInputs(/*rows=*/6, /*columns=*/256, /*tokens=*/300);
  for (size_t i = 0; i < matrix.values.size(); i += 3) matrix.values[i] = 0;
  for (float& value : matrix.Row(2)) value = 0;
  const Hessian hessian = HessianOf(x);
  for (const Case& c : kCases) {
    if (c.dtype == DType::kQ4_K) continue;  // has no exact zero
    const RowFormat format = RowFormat::Create(c.dtype, c.group, matrix.columns).value();
    const FloatMatrix rounded = RoundForOutputs(matrix, format, hessian, pool).ToFloat(pool);
    for (size_t i = 0; i < matrix.values.size(); ++i) {
      if (matrix.values[i] == 0) {
        ASSERT_EQ(rounded.values[i], 0) << Info(c.dtype).name << " " << i;
      }
    }
  }
}

TEST(RoundForOutputs, InputsThatWereAlwaysZeroAndSmallWeightsDoNoHarm) {
  ThreadPool pool(1);
  FloatMatrix matrix = RandomFloats(4, 64, /*seed=*/3);
  for (float& value : matrix.Row(1)) value *= 1e-30f;  // no scale of F16 is as small
  FloatMatrix x = RandomFloats(100, 64, /*seed=*/4);
  const RowFormat format = RowFormat::Create(DType::kInt4G32, 32, matrix.columns).value();
  for (const float factor : {1.0f, 0.0f}) {
    for (float& value : x.values) value *= factor;
    const FloatMatrix rounded = RoundForOutputs(matrix, format, HessianOf(x), pool).ToFloat(pool);
    EXPECT_TRUE(IsFinite(rounded.values));
    EXPECT_LT(RelativeWeightError(matrix, rounded), 0.2);
    for (const float value : rounded.Row(1)) EXPECT_EQ(value, 0);
  }
}

}  // namespace
}  // namespace terrace
