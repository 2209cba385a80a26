// Logistic regression with an L2 penalty, by Newton's method. Pure.
#pragma once

#include <span>
#include <vector>

namespace terrace {

struct LogisticExample {
  std::vector<double> values = {};
  bool is_positive = false;
};

// P(positive) = Sigmoid(bias + sum of weights * values).
struct LogisticModel {
  std::vector<double> weights = {};
  double bias = 0;

  double Probability(std::span<const double> values) const;
};

// What the bias is penalised with: so little that it only keeps examples of one kind from making it infinite.
inline constexpr double kBiasL2 = 1e-6;

// Minimises (mean of -ln P(example)) + l2 / 2 |weights|^2 + kBiasL2 / 2 bias^2, which has one minimum.
// `values` should be of one scale; there is at least one example, and l2 > 0.
LogisticModel FitLogistic(std::span<const LogisticExample> examples, double l2);

}  // namespace terrace
