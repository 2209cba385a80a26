#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/gemm/gemm.h"
#include "kernels/quant/weight_values.h"

namespace terrace {
namespace {

// x[t][i] / sqrt(mean_i(x[t][i]^2) + epsilon) * norm[i]
void Normalize(const GemmArgs& a, std::vector<float>& x) {
  const size_t width = a.inputs();
  for (size_t first = 0; first < x.size(); first += width) {
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += double{x[first + i]} * x[first + i];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + a.norm_epsilon);
    for (size_t i = 0; i < width; ++i) x[first + i] = static_cast<float>(x[first + i] * scale * a.norm[i]);
  }
}

// As x * sigmoid of GELU, too: 1 + tanh would have no digits left far below 0.
double Gate(GateFunction function, double x) {
  switch (function) {
    case GateFunction::kSilu:
      return x / (1 + std::exp(-x));
    case GateFunction::kGelu:
      return x / (1 + std::exp(-2 * std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
  }
  return 0;
}

double Product(const std::vector<float>& weights, const float* x) {
  double sum = 0;
  for (size_t k = 0; k < weights.size(); ++k) sum += double{x[k]} * weights[k];
  return sum;
}

}  // namespace

void GemmRef(const GemmArgs& a, ThreadPool&) {
  const size_t inputs = a.inputs();
  std::vector<float> x;
  for (size_t token = 0; token < a.tokens; ++token) {
    x.insert(x.end(), a.Token(token), a.Token(token) + inputs);
  }
  if (a.norm != nullptr) Normalize(a, x);
  std::vector<float> row(inputs), up(inputs);
  for (const GemmPart& part : a.parts.first(a.gated ? 1 : a.parts.size())) {
    const size_t outputs = part.weights.rows;
    for (size_t output = 0; output < outputs; ++output) {
      DecodeRow(part.weights.AsRows(), output, row.data());
      if (a.gated) DecodeRow(a.parts[1].weights.AsRows(), output, up.data());
      for (size_t token = 0; token < a.tokens; ++token) {
        float& out = part.out[token * outputs + output];
        double sum = Product(row, &x[token * inputs]);
        if (a.gated) sum = Gate(a.gate, sum) * Product(up, &x[token * inputs]);
        out = static_cast<float>(part.add_to_out ? out + sum : sum);
      }
    }
  }
}

}  // namespace terrace
