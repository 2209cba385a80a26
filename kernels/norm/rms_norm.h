// Root mean square normalisation (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019):
//   out[t][i] = x[t][i] / sqrt(mean_i(x[t][i]^2) + epsilon) * weight[i]
#pragma once

#include <cstddef>

namespace terrace {

class ThreadPool;

struct RmsNormArgs {
  const float* x = nullptr;       // [tokens, width]
  const float* weight = nullptr;  // [width]
  float* out = nullptr;           // [tokens, width]; may be x
  size_t tokens = 0, width = 0;
  float epsilon = 0;
};

void RmsNormRef(const RmsNormArgs& args, ThreadPool& pool);

}  // namespace terrace
