#include <cmath>

#include "kernels/rope/rope.h"

namespace terrace {

void RopeAngles(const uint32_t* positions, size_t tokens, double base, size_t head_dim, float* cos,
                float* sin) {
  const size_t pairs = head_dim / 2;
  for (size_t pair = 0; pair < pairs; ++pair) {
    const double step = std::pow(base, -2.0 * static_cast<double>(pair) / static_cast<double>(head_dim));
    for (size_t token = 0; token < tokens; ++token) {
      const double angle = positions[token] * step;
      cos[token * pairs + pair] = static_cast<float>(std::cos(angle));
      sin[token * pairs + pair] = static_cast<float>(std::sin(angle));
    }
  }
}

void RopeRef(const RopeArgs& a) {
  const size_t pairs = a.head_dim / 2;
  for (size_t token = 0; token < a.tokens; ++token) {
    for (size_t head = 0; head < a.heads; ++head) {
      float* x = a.x + (token * a.heads + head) * a.head_dim;
      for (size_t pair = 0; pair < pairs; ++pair) {
        float& first = x[a.neighbours ? 2 * pair : pair];
        float& second = x[a.neighbours ? 2 * pair + 1 : pair + pairs];
        const double cos = a.cos[token * pairs + pair], sin = a.sin[token * pairs + pair];
        const double real = first * cos - second * sin, imaginary = second * cos + first * sin;
        first = static_cast<float>(real);
        second = static_cast<float>(imaginary);
      }
    }
  }
}

}  // namespace terrace
