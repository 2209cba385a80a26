#include <cmath>

#include "kernels/norm/rms_norm.h"

namespace terrace {

void RmsNormRef(const RmsNormArgs& a, ThreadPool&) {
  for (size_t token = 0; token < a.tokens; ++token) {
    const float* x = a.x + token * a.width;
    double squares = 0;
    for (size_t i = 0; i < a.width; ++i) squares += double{x[i]} * x[i];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(a.width) + a.epsilon);
    for (size_t i = 0; i < a.width; ++i) {
      a.out[token * a.width + i] = static_cast<float>(x[i] * scale * a.weight[i]);
    }
  }
}

}  // namespace terrace
