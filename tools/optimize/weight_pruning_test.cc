#include "tools/optimize/weight_pruning.h"

#include <algorithm>
#include <cmath>
#include <eigen3/Eigen/Dense>

#include "gtest/gtest.h"
#include "tools/optimize/testing_matrices.h"

namespace terrace {
namespace {

using Matrix = Eigen::MatrixXd;

constexpr SparsityPattern kHalf = {.share = 0.5}, kTwoOfFour = {.kept = 2, .of = 4},
                          kFourOfEight = {.kept = 4, .of = 8};

size_t Zeros(std::span<const float> values) { return static_cast<size_t>(std::ranges::count(values, 0.0f)); }

InverseHessian Inverted(const Hessian& hessian) {
  auto inverse = InvertHessian(hessian, kDefaultDamping, /*by_size=*/false);
  CHECK(inverse.ok(), Message(inverse.status()));
  return *std::move(inverse);
}

Matrix DampedHessian(const Hessian& hessian) {
  const auto n = static_cast<Eigen::Index>(hessian.inputs());
  Matrix h = Eigen::Map<const Matrix>(hessian.values().data(), n, n);
  h.diagonal().array() += DampingOf(hessian, kDefaultDamping);
  return h;
}

TEST(SparseGpt, LosesLessThanMagnitudeOfOutputs) {
  ThreadPool pool(2);
  for (unsigned seed = 1; seed <= 5; ++seed) {
    const FloatMatrix matrix = RandomFloats(70, 192, seed);
    const Hessian hessian = HessianOf(CorrelatedInputs(600, 192, seed + 100));
    const InverseHessian inverse = Inverted(hessian);
    for (const SparsityPattern& pattern : {kHalf, kTwoOfFour, kFourOfEight, SparsityPattern{.share = 0.8}}) {
      SCOPED_TRACE(testing::Message()
                   << "seed " << seed << " share " << pattern.share << " of " << pattern.of);
      const double sparse_gpt =
          RelativeOutputError(matrix, SparseGpt(matrix, pattern, inverse, pool), hessian, pool);
      const double magnitude = RelativeOutputError(matrix, PruneByMagnitude(matrix, pattern), hessian, pool);
      EXPECT_LT(sparse_gpt, 0.8 * magnitude);
    }
  }
}

TEST(WeightPruning, ZerosAreAsManyAsAskedForAndWhereAskedFor) {
  ThreadPool pool(2);
  const FloatMatrix matrix = RandomFloats(67, 320, /*seed=*/3);
  const InverseHessian inverse = Inverted(HessianOf(CorrelatedInputs(500, 320, /*seed=*/4)));
  for (const double share : {0.01, 0.3, 0.5, 0.99}) {
    const auto want = static_cast<size_t>(std::llround(share * 67 * 320));
    EXPECT_EQ(Zeros(PruneByMagnitude(matrix, {.share = share}).values), want);
    EXPECT_EQ(Zeros(SparseGpt(matrix, {.share = share}, inverse, pool).values), want);
  }
  for (const SparsityPattern& pattern : {kTwoOfFour, kFourOfEight, SparsityPattern{.kept = 1, .of = 4}}) {
    for (const FloatMatrix& pruned :
         {PruneByMagnitude(matrix, pattern), SparseGpt(matrix, pattern, inverse, pool)}) {
      for (size_t i = 0; i < pruned.values.size(); i += pattern.of)
        ASSERT_EQ(Zeros(std::span(pruned.values).subspan(i, pattern.of)), pattern.of - pattern.kept) << i;
    }
  }
}

TEST(Magnitude, KeepsTheLargestAsTheyAreAndOfEqualOnesTheLast) {
  const FloatMatrix matrix = {2, 4, {1, -5, 2, 3, 1, 1, 1, -1}};
  EXPECT_EQ(PruneByMagnitude(matrix, kHalf).values, (std::vector<float>{0, -5, 2, 3, 0, 0, 0, -1}));
  EXPECT_EQ(PruneByMagnitude(matrix, kTwoOfFour).values, (std::vector<float>{0, -5, 0, 3, 0, 0, 1, -1}));
}

TEST(HasPattern, CountsTheZerosOfEachGroup) {
  const FloatMatrix matrix = RandomFloats(3, 64, /*seed=*/8);
  for (const SparsityPattern& pattern : {kTwoOfFour, kFourOfEight}) {
    FloatMatrix pruned = PruneByMagnitude(matrix, pattern);
    EXPECT_FALSE(HasPattern(matrix, pattern));
    EXPECT_TRUE(HasPattern(pruned, pattern));
    *std::ranges::find(pruned.Row(2), 0.0f) = 1;  // one more than its group may keep
    EXPECT_FALSE(HasPattern(pruned, pattern));
  }
  EXPECT_FALSE(HasPattern({1, 6, std::vector<float>(6)}, kTwoOfFour));  // no whole groups
}

// Where the first input is the one that goes, all others take over: the optimal brain surgeon's update
// (Hassibi and Stork, 1993), w - w_0 / [H^-1]_00 H^-1 e_0.
TEST(SparseGpt, RemovingOneWeightIsTheOptimalUpdate) {
  ThreadPool pool(1);
  const size_t n = 24;
  for (unsigned seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(seed);
    FloatMatrix matrix = RandomFloats(1, n, seed);
    for (float& weight : matrix.values) weight += weight < 0 ? -1.0f : 1.0f;
    matrix.values[0] = 0.05f;
    const Hessian hessian = HessianOf(CorrelatedInputs(200, n, seed + 50));
    const Matrix inverse = DampedHessian(hessian).inverse();
    const FloatMatrix pruned = SparseGpt(matrix, {.share = 1.0 / n}, Inverted(hessian), pool);
    ASSERT_EQ(pruned.values[0], 0);
    ASSERT_EQ(Zeros(pruned.values), 1u);
    for (size_t i = 1; i < n; ++i) {
      const double want = matrix.values[i] - matrix.values[0] / inverse(0, 0) * inverse(Eigen::Index(i), 0);
      EXPECT_NEAR(pruned.values[i], want, 1e-5 * (1 + std::abs(want)));
    }
  }
}

// The paper's method with no factorization and no panels: the inverse of what is left after each input.
TEST(SparseGpt, IsThePlainMethodOfThePaper) {
  ThreadPool pool(2);
  const size_t n = 160;  // two panels
  const FloatMatrix matrix = RandomFloats(5, n, /*seed=*/8);
  const Hessian hessian = HessianOf(CorrelatedInputs(700, n, /*seed=*/9));
  const Matrix damped = DampedHessian(hessian);
  const FloatMatrix got = SparseGpt(matrix, kTwoOfFour, Inverted(hessian), pool);
  Matrix weights(5, Eigen::Index(n));
  for (size_t i = 0; i < matrix.values.size(); ++i)
    weights(Eigen::Index(i / n), Eigen::Index(i % n)) = matrix.values[i];
  std::vector<Matrix> inverses;  // of the inputs from k on
  for (Eigen::Index k = 0; k < Eigen::Index(n); ++k)
    inverses.push_back(damped.bottomRightCorner(Eigen::Index(n) - k, Eigen::Index(n) - k).inverse());
  for (Eigen::Index row = 0; row < 5; ++row) {
    std::vector<bool> goes(n);
    for (Eigen::Index k = 0; k < Eigen::Index(n); ++k) {
      if (k % 4 == 0) {
        std::vector<std::pair<double, Eigen::Index>> costs;
        for (Eigen::Index i = k; i < k + 4; ++i)
          costs.emplace_back(weights(row, i) * weights(row, i) / inverses[static_cast<size_t>(i)](0, 0), i);
        std::ranges::sort(costs);
        for (size_t i = 0; i < 2; ++i) goes[static_cast<size_t>(costs[i].second)] = true;
      }
      if (!goes[static_cast<size_t>(k)]) continue;
      const Matrix& inverse = inverses[static_cast<size_t>(k)];
      const double error = weights(row, k) / inverse(0, 0);
      for (Eigen::Index i = k; i < Eigen::Index(n); ++i) weights(row, i) -= error * inverse(i - k, 0);
      weights(row, k) = 0;
    }
  }
  for (size_t i = 0; i < got.values.size(); ++i) {
    const double want = weights(Eigen::Index(i / n), Eigen::Index(i % n));
    EXPECT_NEAR(got.values[i], want, 1e-4 * (1 + std::abs(want))) << i;
  }
}

TEST(SparseGpt, TheBitsAreTheSameWithAnyNumberOfThreads) {
  const FloatMatrix matrix = RandomFloats(200, 256, /*seed=*/5);
  const InverseHessian inverse = Inverted(HessianOf(CorrelatedInputs(400, 256, /*seed=*/6)));
  ThreadPool one(1), three(3);
  for (const SparsityPattern& pattern : {kHalf, kTwoOfFour})
    EXPECT_EQ(SparseGpt(matrix, pattern, inverse, one).values,
              SparseGpt(matrix, pattern, inverse, three).values);
}

}  // namespace
}  // namespace terrace
