#include <cmath>

#include "kernels/norm/add_norm.h"

namespace terrace {

void AddNormRef(const AddNormArgs& a, ThreadPool&) {
  for (size_t token = 0; token < a.tokens; ++token) {
    const float* x = a.x + token * a.width;
    float* hidden = a.hidden + token * a.width;
    double squares = 0;
    for (size_t i = 0; i < a.width; ++i) squares += double{x[i]} * x[i];
    const double root = std::sqrt(squares / static_cast<double>(a.width) + a.norm_epsilon);
    for (size_t i = 0; i < a.width; ++i) hidden[i] = static_cast<float>(hidden[i] + x[i] / root * a.norm[i]);
  }
}

}  // namespace terrace
