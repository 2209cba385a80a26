// What a sublayer puts out is normalized before it joins the residual stream (Gemma Team, "Gemma 2", 2024):
//   hidden[t][i] += x[t][i] / sqrt(mean_i(x[t][i]^2) + epsilon) * norm[i]
// The norm in front of a sublayer is part of gemm.
//
// A token's row is NaN where its squares overflow.
#pragma once

#include <cstddef>

namespace terrace {

class ThreadPool;

struct AddNormArgs {
  const float* x = nullptr;     // [tokens, width]
  const float* norm = nullptr;  // [width]
  float norm_epsilon = 0;
  float* hidden = nullptr;  // [tokens, width]
  size_t tokens = 0, width = 0;
};

void AddNormRef(const AddNormArgs& args, ThreadPool& pool);

}  // namespace terrace
