// Random matrices and correlated inputs for the tests of this folder.
#pragma once

#include <cstdint>
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

// A layer for GPTQ, as tests/bench/gptq_golden.py and gptq_reference.py make it: inputs have a quarter of
// their own beside what they share, and one in 16 is eight times as large.
struct GptqInputs {
  FloatMatrix matrix;
  FloatMatrix x;  // [tokens, columns]
};
inline GptqInputs MakeGptqInputs(size_t rows, size_t columns, size_t tokens) {
  const auto next = [](uint64_t& state) {  // in [-1, 1)
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state >> 40) / 0x1p23 - 1;
  };
  uint64_t of_weights = 1, of_inputs = 2, of_causes = 3;
  GptqInputs out = {{rows, columns, std::vector<float>(rows * columns)},
                    {tokens, columns, std::vector<float>(tokens * columns)}};
  for (float& value : out.matrix.values) value = static_cast<float>(next(of_weights));
  for (size_t token = 0; token < tokens; ++token) {
    double causes[4];
    for (double& cause : causes) cause = next(of_causes);
    for (size_t i = 0; i < columns; ++i)
      out.x.Row(token)[i] = static_cast<float>((causes[i % 4] + next(of_inputs) / 4) * (i % 16 == 5 ? 8 : 1));
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
