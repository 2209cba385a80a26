#include "tools/optimize/gptq.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "tools/optimize/testing_matrices.h"
#include "tools/optimize/weight_pruning.h"

namespace terrace {
namespace {

constexpr double kDamping = 0.01;

RowFormat FormatOf(DType dtype, uint32_t group, size_t columns) {
  const auto format = RowFormat::Create(dtype, group, columns);
  CHECK(format.ok(), Message(format.status()));
  return *format;
}

// (H + damping)^-1 by Gauss and Jordan.
std::vector<double> PlainInverse(const Hessian& hessian) {
  const size_t n = hessian.inputs();
  std::vector<double> left(hessian.values().begin(), hessian.values().end()), right(n * n);
  double mean = 0;
  for (size_t i = 0; i < n; ++i) mean += hessian.Diagonal(i) / static_cast<double>(n);
  for (size_t i = 0; i < n; ++i) {
    left[i * n + i] += kDamping * mean;
    right[i * n + i] = 1;
  }
  for (size_t pivot = 0; pivot < n; ++pivot) {  // positive definite: every pivot is positive
    const double scale = 1 / left[pivot * n + pivot];
    for (size_t j = 0; j < n; ++j) {
      left[pivot * n + j] *= scale;
      right[pivot * n + j] *= scale;
    }
    for (size_t row = 0; row < n; ++row) {
      if (row == pivot) continue;
      const double factor = left[row * n + pivot];
      for (size_t j = 0; j < n; ++j) {
        left[row * n + j] -= factor * left[pivot * n + j];
        right[row * n + j] -= factor * right[pivot * n + j];
      }
    }
  }
  return right;
}

// The paper's method as its text has it: one input after the other, the whole inverse brought up to date
// after each, no factorization and no panels.
FloatMatrix PlainGptq(const FloatMatrix& matrix, const RowFormat& format, const Hessian& hessian) {
  const size_t n = matrix.columns;
  std::vector<double> inverse = PlainInverse(hessian);
  std::vector<double> weights(matrix.values.begin(), matrix.values.end());
  std::vector<BlockLevels> levels(matrix.rows);
  FloatMatrix out = {matrix.rows, n, std::vector<float>(matrix.values.size())};
  for (size_t k = 0; k < n; ++k) {
    for (size_t row = 0; row < matrix.rows; ++row) {
      double* const w = &weights[row * n];
      if (k % format.block() == 0) {
        const std::vector<float> block(w + k, w + k + format.block());
        levels[row] = format.Choose(block, {});
      }
      const WeightLevel& level = levels[row].levels[k % format.block() / format.shared()];
      out.Row(row)[k] = level.ValueOf(CodeOf(level, format.codes(), static_cast<float>(w[k])));
      const double error = (w[k] - out.Row(row)[k]) / inverse[k * n + k];
      for (size_t j = k; j < n; ++j) w[j] -= error * inverse[k * n + j];
    }
    std::vector<double> pivot(inverse.begin() + static_cast<std::ptrdiff_t>(k * n),
                              inverse.begin() + static_cast<std::ptrdiff_t>((k + 1) * n));
    for (size_t i = 0; i < n; ++i) {
      const double factor = inverse[i * n + k] / pivot[k];
      for (size_t j = 0; j < n; ++j) inverse[i * n + j] -= factor * pivot[j];
    }
  }
  return out;
}

TEST(Gptq, KeepsZerosWhereAskedAndTheOthersStillTakeOver) {
  ThreadPool pool(2);
  const FloatMatrix matrix = PruneByMagnitude(RandomFloats(40, 256, /*seed=*/21), {.kept = 2, .of = 4});
  const Hessian hessian = HessianOf(CorrelatedInputs(600, 256, /*seed=*/22));
  const RowFormat format = FormatOf(DType::kInt8, 0, 256);
  const double rounded =
      RelativeOutputError(matrix, RoundToNearest(matrix, format, {}, pool).ToFloat(pool), hessian, pool);
  for (const bool by_size : {false, true}) {
    const auto inverse = InvertHessian(hessian, kDamping, by_size);
    ASSERT_TRUE(inverse.ok()) << inverse.status();
    for (const bool keeps : {false, true}) {
      const FloatMatrix quantized =
          Gptq(matrix, format, *inverse, {.searches_levels = false, .keeps_zeros = keeps}, pool)
              .ToFloat(pool);
      SCOPED_TRACE(testing::Message() << "by size " << by_size << ", keeps " << keeps);
      EXPECT_EQ(HasPattern(quantized, {.kept = 2, .of = 4}), keeps);
      for (size_t i = 0; keeps && i < matrix.values.size(); ++i)
        ASSERT_TRUE(matrix.values[i] != 0 || quantized.values[i] == 0) << i;
      EXPECT_LT(RelativeOutputError(matrix, quantized, hessian, pool), rounded);
    }
  }
}

TEST(Gptq, IsThePlainMethodOfThePaper) {
  ThreadPool pool(2);
  const struct {
    DType dtype;
    uint32_t group;
  } cases[] = {{DType::kInt4G32, 32}, {DType::kInt4G32, 64}, {DType::kInt4G128, 128}, {DType::kQ4_0, 0},
               {DType::kQ8_0, 0},     {DType::kQ4_K, 0},     {DType::kQ6_K, 0},       {DType::kInt8, 0}};
  const FloatMatrix matrix = RandomFloats(70, 256, /*seed=*/1);
  const Hessian hessian = HessianOf(CorrelatedInputs(200, 256, /*seed=*/2));
  const InverseHessian inverse = InvertHessian(hessian, kDamping, /*by_size=*/false).value();
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << Info(c.dtype).name << " " << c.group);
    const RowFormat format = FormatOf(c.dtype, c.group, matrix.columns);
    const FloatMatrix want = PlainGptq(matrix, format, hessian);
    const FloatMatrix got = Gptq(matrix, format, inverse, {.searches_levels = false}, pool).ToFloat(pool);
    // A weight at the middle between two levels may fall to either by the last bits of a double, and moves
    // those after it.
    const double of_want = OutputSquares(Difference(want, matrix), hessian, pool),
                 of_got = OutputSquares(Difference(got, matrix), hessian, pool);
    EXPECT_NEAR(of_got, of_want, 1e-3 * of_want);
    size_t same = 0;
    for (size_t i = 0; i < want.values.size(); ++i) same += want.values[i] == got.values[i];
    EXPECT_GT(static_cast<double>(same), 0.995 * static_cast<double>(want.values.size()));
  }
}

TEST(Gptq, IsWhatItsAuthorsCodeMakes) {
  std::ifstream file("tools/optimize/testdata/gptq_golden.txt");
  std::string comment;
  std::getline(file, comment);
  size_t rows = 0, columns = 0, tokens = 0;
  uint32_t group = 0;
  double damping = 0;
  file >> rows >> columns >> tokens >> group >> damping;
  ASSERT_TRUE(file && rows == 6 && columns == 64);
  FloatMatrix want = {rows, columns, std::vector<float>(rows * columns)};
  for (float& value : want.values) file >> value;
  ASSERT_FALSE(file.fail());

  const auto [matrix, x] = MakeGptqInputs(rows, columns, tokens);
  ThreadPool pool(1);
  const Hessian hessian = HessianOf(x);
  const FloatMatrix got =
      Gptq(matrix, FormatOf(DType::kInt4G32, group, columns),
           InvertHessian(hessian, damping, /*by_size=*/false).value(), {.searches_levels = false}, pool)
          .ToFloat(pool);
  const double of_want = OutputSquares(Difference(want, matrix), hessian, pool),
               of_got = OutputSquares(Difference(got, matrix), hessian, pool);
  EXPECT_NEAR(of_got, of_want, 0.01 * of_want);
  size_t same = 0;
  for (size_t i = 0; i < want.values.size(); ++i) same += want.values[i] == got.values[i];
  EXPECT_GE(same, want.values.size() - 4);  // ties
}

TEST(Gptq, LosesLessOfTheOutputsThanRounding) {
  ThreadPool pool(2);
  const FloatMatrix matrix = RandomFloats(70, 256, /*seed=*/3);
  const Hessian hessian = HessianOf(CorrelatedInputs(600, 256, /*seed=*/4));
  const InverseHessian inverses[] = {InvertHessian(hessian, kDamping, /*by_size=*/false).value(),
                                     InvertHessian(hessian, kDamping, /*by_size=*/true).value()};
  const auto error = [&](const QuantizedMatrix& quantized) {
    return OutputSquares(Difference(quantized.ToFloat(pool), matrix), hessian, pool);
  };
  const struct {
    DType dtype;
    uint32_t group;
  } cases[] = {{DType::kInt4G32, 32}, {DType::kInt4G128, 128}, {DType::kQ4_0, 0},
               {DType::kQ4_K, 0},     {DType::kQ6_K, 0},       {DType::kInt8, 0}};
  for (const auto& c : cases) {
    const RowFormat format = FormatOf(c.dtype, c.group, matrix.columns);
    const double rounded = error(RoundToNearest(matrix, format, {}, pool));
    for (const bool by_size : {false, true}) {
      for (const bool searches_levels : {false, true}) {
        SCOPED_TRACE(testing::Message()
                     << Info(c.dtype).name << " by size " << by_size << " searches " << searches_levels);
        EXPECT_LT(error(Gptq(matrix, format, inverses[by_size], {.searches_levels = searches_levels}, pool)),
                  0.5 * rounded);
      }
    }
  }
}

TEST(Gptq, WithInputsThatHaveNothingInCommonIsRounding) {
  ThreadPool pool(1);
  const FloatMatrix matrix = RandomFloats(10, 64, /*seed=*/5);
  FloatMatrix x = {64, 64, std::vector<float>(64 * 64)};
  for (size_t i = 0; i < 64; ++i) x.Row(i)[i] = 1 + static_cast<float>(i);
  const RowFormat format = FormatOf(DType::kInt4G32, 32, 64);
  const QuantizedMatrix nearest = RoundToNearest(matrix, format, {}, pool);
  for (const bool by_size : {false, true}) {
    const auto inverse = InvertHessian(HessianOf(x), kDamping, by_size);
    const QuantizedMatrix got = Gptq(matrix, format, *inverse, {.searches_levels = false}, pool);
    ASSERT_EQ(got.codes().size(), nearest.codes().size());
    EXPECT_EQ(std::memcmp(got.codes().data(), nearest.codes().data(), got.codes().size()), 0) << by_size;
  }
}

TEST(Gptq, HasTheSameBitsWithAnyNumberOfThreads) {
  const FloatMatrix matrix = RandomFloats(200, 192, /*seed=*/6);
  const InverseHessian inverse =
      InvertHessian(HessianOf(CorrelatedInputs(300, 192, /*seed=*/7)), kDamping, true).value();
  const RowFormat format = FormatOf(DType::kInt4G32, 64, 192);
  ThreadPool one(1), four(4);
  const QuantizedMatrix a = Gptq(matrix, format, inverse, {}, one),
                        b = Gptq(matrix, format, inverse, {}, four);
  EXPECT_EQ(std::memcmp(a.codes().data(), b.codes().data(), a.codes().size()), 0);
}

}  // namespace
}  // namespace terrace
