#include <cmath>
#include <vector>

#include "kernels/activation/silu_mul.h"
#include "kernels/gemm/gemm.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/quant/weight_values.h"

namespace terrace {
namespace {

double Product(const std::vector<float>& weights, const float* x) {
  double sum = 0;
  for (size_t k = 0; k < weights.size(); ++k) sum += double{x[k]} * weights[k];
  return sum;
}

}  // namespace

void GemmRef(const GemmArgs& a, ThreadPool& pool) {
  const size_t inputs = a.inputs();
  std::vector<float> normed;
  const float* x = a.x;
  if (a.norm != nullptr) {
    normed.resize(a.tokens * inputs);
    RmsNormRef({.x = a.x,
                .weight = a.norm,
                .out = normed.data(),
                .tokens = a.tokens,
                .width = inputs,
                .epsilon = a.norm_epsilon},
               pool);
    x = normed.data();
  }
  std::vector<float> row(inputs), up(inputs);
  for (const GemmPart& part : a.parts.first(a.gated ? 1 : a.parts.size())) {
    const size_t outputs = part.weights.rows;
    for (size_t output = 0; output < outputs; ++output) {
      DecodeRow(part.weights.AsRows(), output, row.data());
      if (a.gated) DecodeRow(a.parts[1].weights.AsRows(), output, up.data());
      for (size_t token = 0; token < a.tokens; ++token) {
        float& out = part.out[token * outputs + output];
        double sum = Product(row, x + token * inputs);
        if (a.gated) sum = sum / (1 + std::exp(-sum)) * Product(up, x + token * inputs);
        out = static_cast<float>(part.add_to_out ? out + sum : sum);
      }
    }
  }
}

}  // namespace terrace
