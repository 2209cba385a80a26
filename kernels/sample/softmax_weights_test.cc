#include "kernels/sample/softmax_weights.h"

#include <cmath>
#include <limits>

#include "kernels/op_testing.h"

namespace terrace {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Result {
  SoftmaxSums sums;
  std::vector<float> weights;
};

Result SoftmaxWeights(const OpTable& ops, const std::vector<float>& logits, float temperature = 1) {
  Result result{.sums = {}, .weights = std::vector<float>(logits.size())};
  result.sums = ops.softmax_weights({.logits = logits.data(),
                                     .weights = result.weights.data(),
                                     .count = logits.size(),
                                     .temperature = temperature});
  return result;
}

// A weight: 4 roundings of exp (simd/exp.h), and the argument's own two, of magnitude |x|. The sum: one piece
// adds 64 times to a lane and 4 times in the tree.
TEST_P(EveryCpu, SoftmaxWeightsMatchTheReference) {
  for (const size_t count : {1, 15, 16, 17, 1000, 1024, 1040, 49'153}) {
    for (const float temperature : {0.25f, 1.0f, 1.7f}) {
      SCOPED_TRACE(testing::Message() << count << " logits at temperature " << temperature);
      const auto logits = RandomNormal(count, /*seed=*/count);
      const Result want = SoftmaxWeights(ReferenceOps(), logits, temperature);
      const Result got = SoftmaxWeights(ops(), logits, temperature);
      EXPECT_EQ(got.sums.largest, want.sums.largest);
      for (size_t i = 0; i < count; ++i) {
        const double argument = std::abs((logits[i] - want.sums.largest) / temperature);
        EXPECT_NEAR(got.weights[i], want.weights[i], (6 + 2 * argument) * kRounding * want.weights[i]) << i;
      }
      const double largest_argument = 12 / temperature;
      EXPECT_NEAR(got.sums.sum, want.sums.sum, (75 + 2 * largest_argument) * kRounding * want.sums.sum);
    }
  }
}

// Each backend's exp (simd/exp.h) over the range in which it is not 0; the largest logit is 0.
TEST_P(EveryCpu, SoftmaxWeightsHaveTheErrorOfExp) {
  std::vector<float> logits(200'001);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i) * (-87.33654f / 200'000);
  const auto weights = SoftmaxWeights(ops(), logits).weights;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double want = std::exp(double{logits[i]});
    ASSERT_NEAR(weights[i], want, 2.5e-7 * want) << logits[i];
  }
}

TEST_P(EveryCpu, SoftmaxSumsAreTheSameWithoutTheWeights) {
  const auto logits = RandomNormal(1000, /*seed=*/1);
  const SoftmaxSums with = SoftmaxWeights(ops(), logits).sums;
  const SoftmaxSums without = ops().softmax_weights({.logits = logits.data(), .count = logits.size()});
  EXPECT_EQ(with.largest, without.largest);
  EXPECT_EQ(with.sum, without.sum);
}

TEST_P(EveryCpu, SoftmaxOfWhatIsNotFiniteIsNaNAndMinusInfinityWeighsNothing) {
  for (const size_t count : {3, 40}) {
    for (const float bad : {kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
      for (size_t place = 0; place < count; ++place) {
        auto logits = RandomNormal(count, /*seed=*/2);
        logits[place] = bad;
        EXPECT_TRUE(std::isnan(SoftmaxWeights(ops(), logits).sums.sum)) << bad << " at " << place;
      }
    }
    EXPECT_TRUE(std::isnan(SoftmaxWeights(ops(), std::vector<float>(count, -kInfinity)).sums.sum));
    std::vector<float> one(count, -kInfinity);
    one[count - 1] = -1e30f;
    const Result result = SoftmaxWeights(ops(), one, 1e-38f);
    EXPECT_EQ(result.sums.sum, 1);
    EXPECT_EQ(result.weights[0], 0);
    EXPECT_EQ(result.weights[count - 1], 1);
  }
}

INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
