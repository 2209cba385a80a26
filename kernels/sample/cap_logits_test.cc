#include "kernels/sample/cap_logits.h"

#include <cmath>

#include "kernels/op_testing.h"

namespace terrace {
namespace {

std::vector<float> CapLogits(const OpTable& ops, std::vector<float> logits, float cap, ThreadPool& pool) {
  ops.cap_logits({.logits = logits.data(), .count = logits.size(), .cap = cap}, pool);
  return logits;
}

// Of the cap: tanh's 7 roundings (simd/tanh.h), half of the quotient's, the product's, and the reference's.
TEST_P(EveryCpu, CappedLogitsMatchTheReference) {
  for (const size_t count : {1, 15, 16, 17, 1000, 49'153}) {
    for (const float cap : {0.5f, 30.0f, 50.0f}) {
      SCOPED_TRACE(testing::Message() << count << " logits, cap " << cap);
      auto logits = RandomNormal(count, /*seed=*/count);
      for (float& each : logits) each *= 30;
      const auto want = CapLogits(ReferenceOps(), logits, cap, pool_),
                 got = CapLogits(ops(), logits, cap, pool_);
      for (size_t i = 0; i < count; ++i) {
        ASSERT_NEAR(got[i], want[i], 9.5 * kRounding * cap) << logits[i];
        ASSERT_LE(std::abs(got[i]), cap) << logits[i];
      }
    }
  }
}

TEST_P(EveryCpu, ALogitIsCappedAlikeWhereverItIs) {
  std::vector<float> logits(100'000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 37) - 18.3f;
  const auto got = CapLogits(ops(), logits, 30, pool_);
  for (size_t i = 37; i < logits.size(); ++i) ASSERT_EQ(got[i], got[i - 37]) << i;
}

TEST_P(EveryCpu, LargeLogitsReachTheCapAndThoseThatAreNotFiniteBecomeNaN) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const size_t behind : {0, 20}) {  // in a whole vector, and not
    std::vector<float> logits = {3e38f,    -3e38f,    0,
                                 infinity, -infinity, std::numeric_limits<float>::quiet_NaN()};
    logits.resize(logits.size() + behind);
    for (const OpTable* each : {&ops(), &ReferenceOps()}) {
      const auto got = CapLogits(*each, logits, 30, pool_);
      EXPECT_EQ(got[0], 30);
      EXPECT_EQ(got[1], -30);
      EXPECT_EQ(got[2], 0);
      for (const size_t i : {3, 4, 5}) EXPECT_TRUE(std::isnan(got[i])) << logits[i];
    }
  }
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
