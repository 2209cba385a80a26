#include "tools/optimize/input_removal.h"

#include <cmath>
#include <eigen3/Eigen/Dense>

#include "gtest/gtest.h"
#include "tools/optimize/testing_matrices.h"

namespace terrace {
namespace {

using Matrix = Eigen::MatrixXd;

constexpr double kSmall = 1e-9;  // damping that hardly shows

Matrix Doubles(const FloatMatrix& matrix) {
  Matrix out(matrix.rows, matrix.columns);
  for (size_t row = 0; row < matrix.rows; ++row) {
    for (size_t i = 0; i < matrix.columns; ++i) out(Eigen::Index(row), Eigen::Index(i)) = matrix.Row(row)[i];
  }
  return out;
}

TEST(RemovalCost, IsWhatTheInputsAddToTheOutputs) {
  const FloatMatrix matrix = RandomFloats(20, 48, /*seed=*/1), x = CorrelatedInputs(300, 48, /*seed=*/2);
  const Hessian hessian = HessianOf(x);
  for (const auto& [first, count] : {std::pair<size_t, size_t>{0, 1}, {47, 1}, {8, 16}, {0, 48}}) {
    const auto begin = Eigen::Index(first), width = Eigen::Index(count);
    const Matrix added =
        Doubles(x).middleCols(begin, width) * Doubles(matrix).middleCols(begin, width).transpose();
    EXPECT_NEAR(RemovalCost(matrix, hessian, first, count) / added.squaredNorm(), 1, 1e-6);
  }
}

TEST(WithInputs, RepairIsTheLeastSquaresFit) {
  ThreadPool pool(2);
  const FloatMatrix matrix = RandomFloats(40, 32, /*seed=*/3), x = CorrelatedInputs(400, 32, /*seed=*/4);
  const std::vector<uint32_t> kept = {0, 1, 5, 6, 7, 9, 20, 21, 22, 30};
  const auto got = WithInputs(matrix, HessianOf(x), kept, /*repair=*/true, kSmall, pool);
  ASSERT_TRUE(got.ok()) << got.status();
  const Matrix outputs = Doubles(x) * Doubles(matrix).transpose();
  Matrix inputs(400, Eigen::Index(kept.size()));
  for (size_t i = 0; i < kept.size(); ++i)
    inputs.col(Eigen::Index(i)) = Doubles(x).col(Eigen::Index(kept[i]));
  const Matrix want = inputs.colPivHouseholderQr().solve(outputs).transpose();  // [outputs, kept]
  for (size_t row = 0; row < matrix.rows; ++row) {
    size_t at = 0;
    for (uint32_t i = 0; i < 32; ++i) {
      if (at == kept.size() || kept[at] != i) {
        EXPECT_EQ(got->Row(row)[i], 0);
        continue;
      }
      const double fit = want(Eigen::Index(row), Eigen::Index(at++));
      EXPECT_NEAR(got->Row(row)[i], fit, 1e-4 * (1 + std::abs(fit)));
    }
  }
}

TEST(WithInputs, WithoutRepairWhatStaysIsAsItWas) {
  ThreadPool pool(1);
  const FloatMatrix matrix = RandomFloats(7, 12, /*seed=*/5);
  const Hessian hessian = HessianOf(CorrelatedInputs(100, 12, /*seed=*/6));
  const std::vector<uint32_t> kept = {2, 3, 11};
  const auto plain = WithInputs(matrix, hessian, kept, /*repair=*/false, kDefaultDamping, pool);
  const auto repaired = WithInputs(matrix, hessian, kept, /*repair=*/true, kDefaultDamping, pool);
  ASSERT_TRUE(plain.ok() && repaired.ok());
  EXPECT_EQ(ColumnsAt(*plain, kept).values, ColumnsAt(matrix, kept).values);
  EXPECT_LT(RelativeOutputError(matrix, *repaired, hessian, pool),
            RelativeOutputError(matrix, *plain, hessian, pool));
}

TEST(WithInputs, InputsThatWereNeverSeenCannotBeRepairedWithoutDamping) {
  ThreadPool pool(1);
  FloatMatrix x = RandomFloats(50, 8, /*seed=*/7);
  for (size_t token = 0; token < x.rows; ++token) x.Row(token)[1] = x.Row(token)[2] = 0;
  const FloatMatrix matrix = RandomFloats(4, 8, /*seed=*/8);
  const std::vector<uint32_t> kept = {1, 2, 3};
  const Status status = WithInputs(matrix, HessianOf(x), kept, true, /*damping=*/0, pool).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_NE(Message(status).find("damping"), std::string::npos) << status;
}

}  // namespace
}  // namespace terrace
