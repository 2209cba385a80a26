#include "tools/calibrate/logistic.h"

#include <cmath>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "gtest/gtest.h"
#include "router/tier/calibration_features.h"

namespace terrace {
namespace {

// Labels drawn from a known model of `size` values in [-2, 2].
std::vector<LogisticExample> DrawExamples(size_t count, size_t size, uint64_t seed) {
  std::vector<LogisticExample> examples;
  uint64_t draw = 0;
  for (size_t i = 0; i < count; ++i) {
    LogisticExample example;
    double logit = 0.3;
    for (size_t j = 0; j < size; ++j) {
      example.values.push_back(4 * RandomUniform(seed, draw++) - 2);
      logit += (j % 2 == 0 ? 1.5 : -0.7) * example.values.back();
    }
    example.is_positive = RandomUniform(seed, draw++) < Sigmoid(logit);
    examples.push_back(std::move(example));
  }
  return examples;
}

// By the definition, with the bias last.
std::vector<double> Gradient(const std::vector<LogisticExample>& examples, double l2,
                             const LogisticModel& model) {
  std::vector<double> gradient(model.weights.size() + 1);
  for (const LogisticExample& example : examples) {
    const double error = model.Probability(example.values) - (example.is_positive ? 1 : 0);
    for (size_t j = 0; j < model.weights.size(); ++j) gradient[j] += error * example.values[j];
    gradient.back() += error;
  }
  for (double& each : gradient) each /= static_cast<double>(examples.size());
  for (size_t j = 0; j < model.weights.size(); ++j) gradient[j] += l2 * model.weights[j];
  gradient.back() += kBiasL2 * model.bias;
  return gradient;
}

TEST(Logistic, TheGradientAtTheOptimumIsZero) {
  for (const uint64_t seed : {1u, 2u, 3u}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    for (const double l2 : {1e-4, 0.01, 1.0}) {
      for (const size_t size : {0u, 1u, 5u, 12u}) {
        const auto examples = DrawExamples(80, size, seed);
        // A gradient of g leaves about g^2 of the objective to gain, and what is below its rounding is not
        // seen: g is at most about the square root of that.
        for (const double each : Gradient(examples, l2, FitLogistic(examples, l2)))
          EXPECT_NEAR(each, 0, 1e-6) << "l2 " << l2 << ", " << size << " values";
      }
    }
  }
}

TEST(Logistic, IsWhatPlainGradientDescentFinds) {
  constexpr double kL2 = 0.05, kRate = 0.25;  // below 2 / curvature: at most (4 * 3 + 1) / 4 + l2
  const auto examples = DrawExamples(40, 3, /*seed=*/7);
  LogisticModel reference{.weights = std::vector<double>(3)};
  for (int step = 0; step < 4000; ++step) {
    const std::vector<double> gradient = Gradient(examples, kL2, reference);
    for (size_t j = 0; j < 3; ++j) reference.weights[j] -= kRate * gradient[j];
    reference.bias -= kRate * gradient[3];
  }
  const LogisticModel model = FitLogistic(examples, kL2);
  for (size_t j = 0; j < 3; ++j) EXPECT_NEAR(model.weights[j], reference.weights[j], 1e-6) << j;
  EXPECT_NEAR(model.bias, reference.bias, 1e-6);
}

TEST(Logistic, WithoutValuesIsTheShareOfThePositive) {
  for (const size_t positive : {1u, 5u, 9u}) {
    std::vector<LogisticExample> examples(10);
    for (size_t i = 0; i < positive; ++i) examples[i].is_positive = true;
    EXPECT_NEAR(FitLogistic(examples, 1).Probability({}), static_cast<double>(positive) / 10, 1e-4);
  }
}

TEST(Logistic, ExamplesThatALineSeparatesOrOfOneKindStayFinite) {
  std::vector<LogisticExample> separable;
  for (int i = -10; i <= 10; ++i) {
    if (i != 0) separable.push_back({.values = {i / 10.0}, .is_positive = i > 0});
  }
  const LogisticModel model = FitLogistic(separable, 1e-4);
  EXPECT_TRUE(std::isfinite(model.weights[0]) && model.weights[0] > 0);
  for (const LogisticExample& example : separable)
    EXPECT_EQ(model.Probability(example.values) > 0.5, example.is_positive);

  for (LogisticExample& example : separable) example.is_positive = true;
  const LogisticModel sure = FitLogistic(separable, 0.01);
  EXPECT_TRUE(std::isfinite(sure.bias));
  EXPECT_GT(sure.Probability(separable[0].values), 0.99);
}

}  // namespace
}  // namespace terrace
