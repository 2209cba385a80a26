// Batches of activations times matrices of weights:
//   out[t][n] = sum_k x[t][k] * weights[n][k]            (+ out[t][n] before, with `add_to_out`)
// for up to kMostParts matrices with the same inputs at once, with what usually surrounds them.
//
// Same bits: every output is accumulated on its own, in an order that depends on `inputs` alone
// (docs/adr/0003-same-bits.md). What the CPU kernels round, and in which order they add, is said in
// kernels/gemm/activation_groups.h.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/activation/gate_function.h"
#include "kernels/gemm/gemm_weights.h"

namespace terrace {

class ThreadPool;

struct GemmPart {
  GemmWeights weights;   // [outputs, inputs]
  float* out = nullptr;  // [tokens, outputs]; not x
  bool add_to_out = false;
};

struct GemmArgs {
  static constexpr size_t kMostParts = 3;

  const float* x = nullptr;  // [tokens, inputs]
  size_t x_pitch = 0;        // floats from one token of x to the next; 0: inputs, without a gap
  // [inputs]: x[t][i] / sqrt(mean_i(x[t][i]^2) + norm_epsilon) * norm[i] goes in instead of x (Zhang and
  // Sennrich, "Root Mean Square Layer Normalization", 2019). Where the squares overflow f32 the row is NaN.
  const float* norm = nullptr;
  float norm_epsilon = 0;
  size_t tokens = 0;
  std::span<const GemmPart> parts;  // 1 to kMostParts, of equal inputs
  // Two parts of equal outputs: parts[0].out = gate(parts[0]) * parts[1]; the other's out is not used.
  bool gated = false;
  GateFunction gate = GateFunction::kSilu;

  size_t inputs() const { return parts[0].weights.columns; }
  const float* Token(size_t token) const { return x + token * (x_pitch > 0 ? x_pitch : inputs()); }
};

void GemmRef(const GemmArgs& args, ThreadPool& pool);

}  // namespace terrace
