#include "kernels/rope/rope.h"

namespace terrace {

// Plain f32, left to the compiler to vectorise: under 1 % of a layer's time.
void RopeCpu(const RopeArgs& a) {
  const size_t pairs = a.head_dim / 2;
  const size_t step = a.neighbours ? 2 : 1, partner = a.neighbours ? 1 : pairs;
  for (size_t token = 0; token < a.tokens; ++token) {
    const float* cos = a.cos + token * pairs;
    const float* sin = a.sin + token * pairs;
    for (size_t head = 0; head < a.heads; ++head) {
      float* x = a.x + (token * a.heads + head) * a.head_dim;
      for (size_t pair = 0; pair < pairs; ++pair) {
        const float first = x[pair * step], second = x[pair * step + partner];
        x[pair * step] = first * cos[pair] - second * sin[pair];
        x[pair * step + partner] = second * cos[pair] + first * sin[pair];
      }
    }
  }
}

}  // namespace terrace
