#include "kernels/rope/rope_frequencies.h"

#include <cmath>
#include <numbers>

#include "kernels/op_testing.h"

namespace terrace {
namespace {

struct Angles {
  Angles(const std::vector<uint32_t>& positions, const RopeFrequencies& frequencies)
      : cos(positions.size() * frequencies.steps.size()), sin(cos.size()) {
    RopeAngles(positions.data(), positions.size(), frequencies, cos.data(), sin.data());
  }
  std::vector<float> cos, sin;
};

TEST(RopeFrequencies, FallFromOneTowardsOneOverTheBase) {
  const std::vector<double> steps = MakeRopeFrequencies(500'000, 128).steps;
  ASSERT_EQ(steps.size(), 64u);
  EXPECT_EQ(steps[0], 1);
  for (size_t p = 0; p < 64; ++p)
    EXPECT_DOUBLE_EQ(steps[p] * std::pow(500'000, static_cast<double>(p) / 64), 1) << p;
}

TEST(RopeFrequencies, AreDividedEachByItsOwn) {
  const std::vector<float> divisors = {1, 3, 0.5f, 8};
  const std::vector<double> plain = MakeRopeFrequencies(10000, 8).steps,
                            divided = MakeRopeFrequencies(10000, 8, divisors).steps;
  ASSERT_EQ(divided.size(), 4u);
  for (size_t p = 0; p < 4; ++p) EXPECT_EQ(divided[p], plain[p] / divisors[p]) << p;
  EXPECT_EQ(MakeRopeFrequencies(10000, 8, LinearRopeDivisors(8, 1)).steps, plain);
}

// What linear scaling is: position m turns as position m / factor did.
TEST(RopeFrequencies, LinearScalingInterpolatesPositions) {
  const Angles plain({0, 3, 1000}, MakeRopeFrequencies(10000, 64)),
      scaled({0, 12, 4000}, MakeRopeFrequencies(10000, 64, LinearRopeDivisors(64, 4)));
  EXPECT_TRUE(SameBits(plain.cos, scaled.cos));
  EXPECT_TRUE(SameBits(plain.sin, scaled.sin));
}

// The published rule, in f64, by wavelengths and its three cases (transformers, modeling_rope_utils.py).
double Llama3Frequency(double frequency, const Llama3RopeScaling& s) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength < s.original_context / s.high_freq_factor) return frequency;
  if (wavelength > s.original_context / s.low_freq_factor) return frequency / s.factor;
  const double smooth =
      (s.original_context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return (1 - smooth) * frequency / s.factor + smooth * frequency;
}

TEST(RopeFrequencies, Llama3KeepsHighOnesDividesLowOnesAndInterpolatesBetween) {
  for (const Llama3RopeScaling& scaling :
       {Llama3RopeScaling{}, {.factor = 32}, {.factor = 3, .low_freq_factor = 2, .original_context = 777}}) {
    for (const size_t head_dim : {64, 128}) {
      SCOPED_TRACE(testing::Message() << "factor " << scaling.factor << ", heads of " << head_dim);
      const std::vector<float> divisors = Llama3RopeDivisors(500'000, head_dim, scaling);
      const std::vector<double> plain = MakeRopeFrequencies(500'000, head_dim).steps,
                                scaled = MakeRopeFrequencies(500'000, head_dim, divisors).steps;
      ASSERT_EQ(divisors.size(), head_dim / 2);
      size_t high = 0, between = 0, low = 0;
      for (size_t p = 0; p < divisors.size(); ++p) {
        const double wavelength = 2 * std::numbers::pi / plain[p];
        if (wavelength < scaling.original_context / scaling.high_freq_factor) {
          EXPECT_EQ(divisors[p], 1) << p;
          ++high;
        } else if (wavelength > scaling.original_context / scaling.low_freq_factor) {
          EXPECT_EQ(divisors[p], static_cast<float>(scaling.factor)) << p;
          ++low;
        } else {
          ++between;
        }
        // A divisor is rounded once, to f32.
        const double want = Llama3Frequency(plain[p], scaling);
        EXPECT_NEAR(scaled[p], want, 1.001 * kRounding * want) << p;
        if (p > 0) {
          EXPECT_GE(divisors[p], divisors[p - 1]) << p;
        }
      }
      EXPECT_GT(high, 0u);
      EXPECT_GT(between, 0u);
      EXPECT_GT(low, 0u);
    }
  }
}

// At both borders the pair in between meets its neighbours: a context that puts pair 10 just inside or just
// outside of one moves its divisor by next to nothing.
TEST(RopeFrequencies, Llama3IsContinuousAtBothBorders) {
  const double step = MakeRopeFrequencies(500'000, 128).steps[10];
  for (const double border : {1.0, 4.0}) {  // turns in the original context
    const double context = border * 2 * std::numbers::pi / step;
    const auto divisor = [&](double of_context) {
      return Llama3RopeDivisors(500'000, 128, {.original_context = of_context})[10];
    };
    const float below = divisor(context * (1 - 1e-6)), above = divisor(context * (1 + 1e-6));
    EXPECT_NEAR(below, above, 1e-4) << border;
    EXPECT_NEAR(below, border == 1 ? 8 : 1, 1e-4) << border;
    EXPECT_NE(below, above) << border;  // one of them is interpolated
  }
}

TEST(RopeAngles, DoNotDependOnTheBatch) {
  const RopeFrequencies frequencies = MakeRopeFrequencies(10000, 64);
  const Angles together({3, 70'000, 12}, frequencies), alone({70'000}, frequencies);
  EXPECT_TRUE(SameBits({together.cos.begin() + 32, together.cos.begin() + 64}, alone.cos));
  EXPECT_TRUE(SameBits({together.sin.begin() + 32, together.sin.begin() + 64}, alone.sin));
}

TEST(RopeAngles, AreScaledBeforeTheyAreRounded) {
  RopeFrequencies frequencies = MakeRopeFrequencies(10000, 8);
  frequencies.scale = 1.1f;
  const Angles angles({77}, frequencies);
  for (size_t p = 0; p < 4; ++p) {
    EXPECT_EQ(angles.cos[p], static_cast<float>(1.1f * std::cos(77 * frequencies.steps[p]))) << p;
    EXPECT_EQ(angles.sin[p], static_cast<float>(1.1f * std::sin(77 * frequencies.steps[p]))) << p;
  }
}

}  // namespace
}  // namespace terrace
