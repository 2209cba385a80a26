#include "kernels/gemm/gemm.h"

#include <cmath>
#include <limits>

#include "kernels/op_testing.h"
#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

std::vector<float> Gemm(const OpTable& ops, const std::vector<float>& x, const WeightMatrix& weights,
                        ThreadPool& pool) {
  const size_t tokens = x.size() / weights.columns;
  std::vector<float> out(tokens * weights.rows);
  ops.gemm({.x = x.data(), .weights = weights, .out = out.data(), .tokens = tokens}, pool);
  return out;
}

std::vector<float> Rows(const std::vector<float>& matrix, size_t width, size_t first, size_t count) {
  const auto begin = matrix.begin() + static_cast<ptrdiff_t>(first * width);
  return {begin, begin + static_cast<ptrdiff_t>(count * width)};
}

// A sum of n terms in f32 is off by at most (additions on the longest path + 1 for the product) roundings of
// the sum of the terms' magnitudes: ceil(K / 16) in a lane, 4 in the tree. The reference's own rounding is
// one more, and 1 is to spare for the higher orders.
TEST_P(EveryCpu, GemmMatchesTheReferenceWithinTheRoundingBound) {
  for (const DType dtype : kEveryDType) {
    for (const size_t inputs : {1, 15, 16, 17, 32, 100, 256, 1024, 4096}) {
      if (inputs % Info(dtype).block_elements != 0) continue;
      const size_t outputs = 1 + inputs % 11 + 8;  // whole and broken blocks of rows
      const RandomWeights weights(dtype, outputs, inputs, /*seed=*/inputs);
      for (const size_t tokens : {1, 2, 3, 4, 5, 6, 7, 13, 24, 25}) {
        SCOPED_TRACE(testing::Message() << Info(dtype).name << " inputs " << inputs << " tokens " << tokens);
        const auto x = RandomNormal(tokens * inputs, /*seed=*/tokens);
        const auto want = Gemm(ReferenceOps(), x, weights.matrix, pool_);
        const auto got = Gemm(ops(), x, weights.matrix, pool_);
        for (size_t i = 0; i < got.size(); ++i) {
          double magnitude = 0;
          for (size_t k = 0; k < inputs; ++k) {
            magnitude +=
                std::abs(double{x[i / outputs * inputs + k]} * WeightAt(weights.matrix, i % outputs, k));
          }
          const double bound = (std::ceil(static_cast<double>(inputs) / 16) + 7) * kRounding * magnitude;
          ASSERT_NEAR(got[i], want[i], bound) << i;
        }
      }
    }
  }
}

TEST_P(EveryCpu, GemmOfATokenDoesNotDependOnTheBatch) {
  for (const DType dtype : kEveryDType) {
    const size_t inputs = 96, outputs = 37, tokens = 29;
    const RandomWeights weights(dtype, outputs, inputs, /*seed=*/7);
    const auto x = RandomNormal(tokens * inputs, /*seed=*/8);
    const auto all = Gemm(ops(), x, weights.matrix, pool_);
    for (size_t first = 0; first < tokens; ++first) {
      const size_t count = 1 + first % (tokens - first);  // batches of many sizes
      EXPECT_TRUE(SameBits(Gemm(ops(), Rows(x, inputs, first, count), weights.matrix, pool_),
                           Rows(all, outputs, first, count)));
    }
  }
}

TEST_P(EveryCpu, GemmDoesNotDependOnTheNumberOfThreads) {
  const size_t inputs = 256, outputs = 515, tokens = 33;  // 4.4 million products: worth every thread
  const RandomWeights weights(DType::kF16, outputs, inputs, /*seed=*/9);
  const auto x = RandomNormal(tokens * inputs, /*seed=*/10);
  ThreadPool one(1), three(3);
  const auto want = Gemm(ops(), x, weights.matrix, one);
  EXPECT_TRUE(SameBits(Gemm(ops(), x, weights.matrix, pool_), want));
  EXPECT_TRUE(SameBits(Gemm(ops(), x, weights.matrix, three), want));
}

TEST_P(EveryCpu, GemmAddsToOutAfterTheSum) {
  const RandomWeights weights(DType::kBF16, 9, 33, /*seed=*/11);
  const auto x = RandomNormal(4 * 33, /*seed=*/12);
  auto out = RandomNormal(4 * 9, /*seed=*/13), want = out;
  const auto sums = Gemm(ops(), x, weights.matrix, pool_);
  for (size_t i = 0; i < want.size(); ++i) want[i] += sums[i];
  ops().gemm({.x = x.data(), .weights = weights.matrix, .out = out.data(), .tokens = 4, .add_to_out = true},
             pool_);
  EXPECT_TRUE(SameBits(out, want));
}

TEST_P(EveryCpu, ATokensNaNStaysInItsOwnRow) {
  const size_t inputs = 17;  // rows meet inside a vector
  const RandomWeights weights(DType::kF32, 5, inputs, /*seed=*/14);
  auto x = RandomNormal(3 * inputs, /*seed=*/15);
  const auto want = Gemm(ops(), x, weights.matrix, pool_);
  for (size_t k = 0; k < inputs; ++k) x[inputs + k] = std::numeric_limits<float>::quiet_NaN();
  const auto got = Gemm(ops(), x, weights.matrix, pool_);
  EXPECT_TRUE(SameBits(Rows(got, 5, 0, 1), Rows(want, 5, 0, 1)));
  EXPECT_TRUE(SameBits(Rows(got, 5, 2, 1), Rows(want, 5, 2, 1)));
  for (const float value : Rows(got, 5, 1, 1)) EXPECT_TRUE(std::isnan(value));
}

TEST_P(EveryCpu, GemmOfNoTokensWritesNothing) {
  const RandomWeights weights(DType::kF16, 4, 16, /*seed=*/16);
  EXPECT_TRUE(Gemm(ops(), {}, weights.matrix, pool_).empty());
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
