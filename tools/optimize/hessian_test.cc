#include "tools/optimize/hessian.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"
#include "tools/optimize/testing_matrices.h"

namespace terrace {
namespace {

TEST(Hessian, IsTwiceTheSumOfProducts) {
  constexpr size_t kTokens = 300, kInputs = 130;  // pieces and tiles that are not whole
  const FloatMatrix x = CorrelatedInputs(kTokens, kInputs, /*seed=*/1);
  ThreadPool pool(2);
  Hessian hessian(kInputs);
  hessian.Add(std::span(x.values).first(100 * kInputs), 100, pool);
  hessian.Add(std::span(x.values).subspan(100 * kInputs), kTokens - 100, pool);
  EXPECT_EQ(hessian.tokens(), kTokens);
  for (size_t i = 0; i < kInputs; ++i) {
    double magnitude = 0;
    float largest = 0;
    for (size_t t = 0; t < kTokens; ++t) {
      magnitude += std::abs(x.Row(t)[i]);
      largest = std::max(largest, std::abs(x.Row(t)[i]));
    }
    EXPECT_NEAR(hessian.MeanMagnitude(i), magnitude / kTokens, 1e-9 * magnitude);
    EXPECT_EQ(hessian.LargestMagnitude(i), largest);
    for (size_t j = 0; j < kInputs; ++j) {
      double want = 0, size = 0;
      for (size_t t = 0; t < kTokens; ++t) {
        want += 2 * double{x.Row(t)[i]} * x.Row(t)[j];
        size += 2 * std::abs(double{x.Row(t)[i]} * x.Row(t)[j]);
      }
      ASSERT_NEAR(hessian.values()[i * kInputs + j], want, 1e-12 * size) << i << " " << j;
      ASSERT_EQ(hessian.values()[i * kInputs + j], hessian.values()[j * kInputs + i]);
    }
  }
}

TEST(Hessian, HasTheSameBitsWithAnyNumberOfThreads) {
  const FloatMatrix x = CorrelatedInputs(700, 200, /*seed=*/2);
  const auto values = [&](size_t threads) {
    ThreadPool pool(threads);
    Hessian hessian(x.columns);
    hessian.Add(x.values, x.rows, pool);
    return std::vector<double>(hessian.values().begin(), hessian.values().end());
  };
  const auto one = values(1);
  EXPECT_EQ(values(2), one);
  EXPECT_EQ(values(5), one);
}

TEST(Hessian, TellsTheFirstInputThatIsNotFinite) {
  FloatMatrix x = RandomFloats(40, 70, /*seed=*/3);
  EXPECT_EQ(HessianOf(x).FirstNonFinite(), std::nullopt);
  x.Row(17)[69] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(HessianOf(x).FirstNonFinite(), 69u);
  x.Row(30)[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(HessianOf(x).FirstNonFinite(), 5u);
}

// U^T U (H + damping) is 1, in the order of the inputs.
TEST(InvertHessian, IsTheRootOfTheInverse) {
  constexpr double kDamping = 0.02;
  const Hessian hessian = HessianOf(CorrelatedInputs(60, 90, /*seed=*/4));  // fewer tokens than inputs
  const size_t n = hessian.inputs();
  double mean = 0;
  for (size_t i = 0; i < n; ++i) mean += hessian.Diagonal(i) / static_cast<double>(n);
  for (const bool by_size : {false, true}) {
    SCOPED_TRACE(by_size);
    const auto inverse = InvertHessian(hessian, kDamping, by_size);
    ASSERT_TRUE(inverse.ok()) << inverse.status();
    for (size_t k = 0; k + 1 < n; ++k) {
      if (by_size) {
        EXPECT_GE(hessian.Diagonal(inverse->order[k]), hessian.Diagonal(inverse->order[k + 1]));
      } else {
        EXPECT_EQ(inverse->order[k], k);
      }
    }
    for (size_t row = 0; row < n; ++row) {
      for (size_t column = 0; column < row; ++column) ASSERT_EQ(inverse->At(row, column), 0);
      ASSERT_GT(inverse->At(row, row), 0);
    }
    for (size_t i = 0; i < n; ++i) {
      std::vector<double> half(n);  // U times column i of H
      for (size_t row = 0; row < n; ++row) {
        for (size_t k = row; k < n; ++k) {
          const double h = hessian.values()[inverse->order[k] * n + inverse->order[i]];
          half[row] += inverse->At(row, k) * (h + (k == i ? kDamping * mean : 0));
        }
      }
      for (size_t column = 0; column < n; ++column) {
        double sum = 0;
        for (size_t row = 0; row <= column; ++row) sum += inverse->At(row, column) * half[row];
        ASSERT_NEAR(sum, column == i ? 1 : 0, 1e-8) << column << " " << i;
      }
    }
  }
}

TEST(InvertHessian, WithoutDampingTooFewTokensAreAnErrorWithTheirNumber) {
  const Hessian hessian = HessianOf(RandomFloats(5, 40, /*seed=*/5));
  const Status status = InvertHessian(hessian, 0, /*by_size=*/false).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_NE(Message(status).find("5"), std::string::npos) << status;
  EXPECT_TRUE(InvertHessian(hessian, 0.01, false).ok());
}

TEST(InvertHessian, NeverMakesWhatIsNoNumber) {
  const Hessian hessian = HessianOf(RandomFloats(50, 8, /*seed=*/9));
  EXPECT_EQ(InvertHessian(hessian, NAN, false).status().code(), StatusCode::kInvalidArgument);
}

TEST(InvertHessian, TakesInputsThatAreAlwaysZero) {
  FloatMatrix x = RandomFloats(50, 8, /*seed=*/6);
  for (size_t t = 0; t < x.rows; ++t) x.Row(t)[2] = 0;
  EXPECT_TRUE(InvertHessian(HessianOf(x), 0.01, true).ok());
  EXPECT_TRUE(InvertHessian(HessianOf({4, 8, std::vector<float>(32)}), 0.01, true).ok());
}

TEST(RelativeOutputError, IsThatOfTheOutputs) {
  const FloatMatrix x = CorrelatedInputs(50, 70, /*seed=*/7), before = RandomFloats(45, 70, /*seed=*/8);
  FloatMatrix after = before;
  for (size_t i = 0; i < after.values.size(); i += 3) after.values[i] += 0.01f;
  double error = 0, size = 0;
  for (size_t t = 0; t < x.rows; ++t) {
    for (size_t row = 0; row < before.rows; ++row) {
      double of_before = 0, of_after = 0;
      for (size_t i = 0; i < x.columns; ++i) {
        of_before += double{x.Row(t)[i]} * before.Row(row)[i];
        of_after += double{x.Row(t)[i]} * after.Row(row)[i];
      }
      error += (of_after - of_before) * (of_after - of_before);
      size += of_before * of_before;
    }
  }
  ThreadPool one(1), three(3);
  const Hessian hessian = HessianOf(x);
  EXPECT_NEAR(OutputSquares(before, hessian, one), size, 1e-6 * size);
  EXPECT_NEAR(OutputSquares(Difference(after, before), hessian, one), error, 1e-4 * error);
  EXPECT_NEAR(RelativeOutputError(before, after, hessian, one), std::sqrt(error / size), 1e-4);
  EXPECT_EQ(RelativeOutputError(before, after, hessian, three),
            RelativeOutputError(before, after, hessian, one));
  EXPECT_EQ(RelativeOutputError(before, before, hessian, one), 0);
}

TEST(RelativeError, IsAlwaysFinite) {
  EXPECT_EQ(RelativeError(1, 4), 0.5);
  EXPECT_EQ(RelativeError(0, 0), 0);
  EXPECT_EQ(RelativeError(-1e-20, 1), 0);
  EXPECT_EQ(RelativeError(1, 0), 1);
  EXPECT_EQ(RelativeError(INFINITY, INFINITY), 1);
  EXPECT_EQ(RelativeError(NAN, 1), 1);
}

}  // namespace
}  // namespace terrace
