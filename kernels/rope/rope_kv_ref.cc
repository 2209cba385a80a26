#include <cmath>

#include "kernels/rope/rope_kv.h"

namespace terrace {
namespace {

void Rotate(const RopeKvArgs& a, float* x, size_t token, size_t heads) {
  const size_t head_dim = a.batch.head_dim, pairs = head_dim / 2;
  for (float* head = x; head < x + heads * head_dim; head += head_dim) {
    for (size_t pair = 0; pair < pairs; ++pair) {
      float& first = head[a.neighbours ? 2 * pair : pair];
      float& second = head[a.neighbours ? 2 * pair + 1 : pair + pairs];
      const double cos = a.cos[token * pairs + pair], sin = a.sin[token * pairs + pair];
      const double real = first * cos - second * sin, imaginary = second * cos + first * sin;
      first = static_cast<float>(real);
      second = static_cast<float>(imaginary);
    }
  }
}

}  // namespace

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

void RopeKvRef(const RopeKvArgs& a, ThreadPool&) {
  const size_t head_dim = a.batch.head_dim, kv_heads = a.batch.kv_heads;
  for (size_t token = 0; token < a.batch.tokens; ++token) {
    Rotate(a, a.q + token * a.heads * head_dim, token, a.heads);
    Rotate(a, a.k + token * kv_heads * head_dim, token, kv_heads);
  }
  WriteKv({.batch = a.batch, .keys = a.k, .values = a.v, .kv = a.kv});
}

}  // namespace terrace
