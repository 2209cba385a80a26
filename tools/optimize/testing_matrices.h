// Random matrices and correlated inputs for the tests of this folder.
#pragma once

#include <random>
#include <vector>

#include "tools/optimize/float_layer.h"
#include "tools/optimize/hessian.h"

namespace terrace {

inline FloatMatrix RandomFloats(size_t rows, size_t columns, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  FloatMatrix out = {rows, columns, std::vector<float>(rows * columns)};
  for (float& value : out.values) value = normal(random);
  return out;
}

// [tokens, inputs]: each input is a mixture of a few common causes and noise of its own, some are large.
inline FloatMatrix CorrelatedInputs(size_t tokens, size_t inputs, unsigned seed) {
  constexpr size_t kCauses = 8;
  const FloatMatrix causes = RandomFloats(tokens, kCauses, seed),
                    shares = RandomFloats(kCauses, inputs, seed + 1);
  FloatMatrix out = RandomFloats(tokens, inputs, seed + 2);
  for (size_t token = 0; token < tokens; ++token) {
    for (size_t i = 0; i < inputs; ++i) {
      float& value = out.Row(token)[i];
      value *= 0.3f;
      for (size_t cause = 0; cause < kCauses; ++cause)
        value += causes.Row(token)[cause] * shares.Row(cause)[i];
      if (i % 17 == 3) value *= 20;
    }
  }
  return out;
}

inline Hessian HessianOf(const FloatMatrix& inputs) {
  Hessian hessian(inputs.columns);
  ThreadPool pool(1);
  hessian.Add(inputs.values, inputs.rows, pool);
  return hessian;
}

}  // namespace terrace
