#include "kernels/sample/softmax_weights.h"

#include <algorithm>
#include <cmath>

namespace terrace {

SoftmaxSums SoftmaxWeightsRef(const SoftmaxWeightsArgs& a) {
  SoftmaxSums sums{.largest = *std::max_element(a.logits, a.logits + a.count), .sum = 0};
  for (size_t i = 0; i < a.count; ++i) {
    const double weight = std::exp((double{a.logits[i]} - sums.largest) / a.temperature);
    if (a.weights != nullptr) a.weights[i] = static_cast<float>(weight);
    sums.sum += weight;
  }
  return sums;
}

}  // namespace terrace
