// Probabilities of one row of logits, not yet divided by their sum:
//   weights[i] = exp((logits[i] - largest) / temperature),  sum = sum_i weights[i]
// so that ln sum_i exp(logits[i]) = largest + ln(sum) at temperature 1.
//
// A row with a NaN, +infinity, or nothing finite gives a sum that is NaN; -infinity weighs 0.
#pragma once

#include <cstddef>

namespace terrace {

struct SoftmaxWeightsArgs {
  const float* logits = nullptr;  // [count], at least 1
  float* weights = nullptr;       // [count], or null: only the sums are wanted; not logits
  size_t count = 0;
  float temperature = 1;  // above 0
};

struct SoftmaxSums {
  float largest = 0;
  double sum = 0;
};

SoftmaxSums SoftmaxWeightsRef(const SoftmaxWeightsArgs& args);

}  // namespace terrace
