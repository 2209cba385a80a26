// A batch of activations times a matrix of weights:
//   out[t][n] = sum_k x[t][k] * weights[n][k]            (+ out[t][n] before, with `add_to_out`)
//
// Same bits: every output is accumulated on its own, in an order that depends on `inputs` alone. The CPU
// kernels keep 16 partial sums, sum j over the elements k = j mod 16 in rising order of k, and add them as a
// fixed tree.
#pragma once

#include <cstddef>

#include "kernels/weight_matrix.h"

namespace terrace {

class ThreadPool;

struct GemmArgs {
  const float* x = nullptr;  // [tokens, inputs]
  WeightMatrix weights;      // [outputs, inputs]
  float* out = nullptr;      // [tokens, outputs]; not x
  size_t tokens = 0;
  bool add_to_out = false;

  size_t inputs() const { return weights.columns; }
  size_t outputs() const { return weights.rows; }
};

void GemmRef(const GemmArgs& args, ThreadPool& pool);

}  // namespace terrace
