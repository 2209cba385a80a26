#include "tools/calibrate/logistic.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/status.h"
#include "router/tier/calibration_features.h"

namespace terrace {
namespace {

constexpr int kMaxSteps = 100, kMaxHalvings = 40;
constexpr double kGradientTolerance = 1e-12;

// Weights, then the bias. A square matrix is stored by rows.
using Vector = std::vector<double>;

double Logit(std::span<const double> values, const Vector& at) {
  double logit = at.back();
  for (size_t i = 0; i < values.size(); ++i) logit += at[i] * values[i];
  return logit;
}

double Penalty(size_t i, size_t size, double l2) { return i + 1 == size ? kBiasL2 : l2; }

double Objective(std::span<const LogisticExample> examples, double l2, const Vector& at) {
  double sum = 0;
  for (const LogisticExample& example : examples) {
    const double logit = Logit(example.values, at);
    const double against = example.is_positive ? -logit : logit;
    sum += std::max(against, 0.0) + std::log1p(std::exp(-std::abs(against)));  // ln(1 + exp(against))
  }
  double penalty = 0;
  for (size_t i = 0; i < at.size(); ++i) penalty += Penalty(i, at.size(), l2) / 2 * at[i] * at[i];
  return sum / static_cast<double>(examples.size()) + penalty;
}

struct Derivatives {
  Vector gradient = {};  // [size]
  Vector hessian = {};   // [size, size]
};

Derivatives DerivativesAt(std::span<const LogisticExample> examples, double l2, const Vector& at) {
  const size_t size = at.size();
  const double share = 1 / static_cast<double>(examples.size());
  Derivatives out = {.gradient = Vector(size), .hessian = Vector(size * size)};
  Vector x(size, 1);  // the bias's value is 1
  for (const LogisticExample& example : examples) {
    std::copy(example.values.begin(), example.values.end(), x.begin());
    const double p = Sigmoid(Logit(example.values, at));
    for (size_t i = 0; i < size; ++i) {
      out.gradient[i] += share * (p - (example.is_positive ? 1 : 0)) * x[i];
      for (size_t j = 0; j < size; ++j) out.hessian[i * size + j] += share * p * (1 - p) * x[i] * x[j];
    }
  }
  for (size_t i = 0; i < size; ++i) {
    out.gradient[i] += Penalty(i, size, l2) * at[i];
    out.hessian[i * size + i] += Penalty(i, size, l2);
  }
  return out;
}

// x of A x = b for a positive definite A, by its Cholesky factor L: A = L L^T.
Vector Solve(Vector a, Vector b) {
  const size_t size = b.size();
  for (size_t j = 0; j < size; ++j) {  // L replaces the lower half of A
    for (size_t i = j; i < size; ++i) {
      for (size_t k = 0; k < j; ++k) a[i * size + j] -= a[i * size + k] * a[j * size + k];
      if (i == j) {
        CHECK(a[j * size + j] > 0, "pivot ", j, " is ", a[j * size + j]);
        a[j * size + j] = std::sqrt(a[j * size + j]);
      } else {
        a[i * size + j] /= a[j * size + j];
      }
    }
  }
  for (size_t i = 0; i < size; ++i) {  // L y = b
    for (size_t k = 0; k < i; ++k) b[i] -= a[i * size + k] * b[k];
    b[i] /= a[i * size + i];
  }
  for (size_t i = size; i-- > 0;) {  // L^T x = y
    for (size_t k = i + 1; k < size; ++k) b[i] -= a[k * size + i] * b[k];
    b[i] /= a[i * size + i];
  }
  return b;
}

double LargestMagnitude(const Vector& values) {
  double largest = 0;
  for (const double value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

Vector Stepped(const Vector& from, const Vector& direction, double length) {
  Vector to = from;
  for (size_t i = 0; i < to.size(); ++i) to[i] -= length * direction[i];
  return to;
}

}  // namespace

double LogisticModel::Probability(std::span<const double> values) const {
  double logit = bias;
  for (size_t i = 0; i < values.size(); ++i) logit += weights[i] * values[i];
  return Sigmoid(logit);
}

LogisticModel FitLogistic(std::span<const LogisticExample> examples, double l2) {
  CHECK(!examples.empty() && l2 > 0, examples.size(), " examples, l2 ", l2);
  Vector at(examples.front().values.size() + 1);
  double objective = Objective(examples, l2, at);
  for (int step = 0; step < kMaxSteps; ++step) {
    Derivatives derivatives = DerivativesAt(examples, l2, at);
    if (LargestMagnitude(derivatives.gradient) < kGradientTolerance) break;
    const Vector direction = Solve(std::move(derivatives.hessian), std::move(derivatives.gradient));
    // Newton's whole step may climb where the curve flattens out; a part of it falls.
    Vector next = Stepped(at, direction, 1);
    double next_objective = Objective(examples, l2, next);
    double length = 1;
    for (int i = 0; i < kMaxHalvings && next_objective > objective; ++i) {
      length /= 2;
      next = Stepped(at, direction, length);
      next_objective = Objective(examples, l2, next);
    }
    if (next_objective > objective) break;  // rounding hides what is left to gain
    const bool is_over = next_objective == objective;
    at = std::move(next);
    objective = next_objective;
    if (is_over) break;
  }
  LogisticModel model;
  model.bias = at.back();
  at.pop_back();
  model.weights = std::move(at);
  return model;
}

}  // namespace terrace
