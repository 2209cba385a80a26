#include <cmath>

#include "kernels/rope/rope_kv.h"

namespace terrace {
namespace {

// x: [heads, head_dim], of one token; in place.
void AddBias(const RopeKvArgs& a, const float* bias, float* x, size_t heads) {
  for (size_t i = 0; bias != nullptr && i < heads * a.batch.head_dim; ++i) x[i] += bias[i];
}

void Normalize(const RopeKvArgs& a, const float* norm, float* x, size_t heads) {
  const size_t head_dim = a.batch.head_dim;
  for (float* head = x; norm != nullptr && head < x + heads * head_dim; head += head_dim) {
    double squares = 0;
    for (size_t i = 0; i < head_dim; ++i) squares += double{head[i]} * head[i];
    const double root = std::sqrt(squares / static_cast<double>(head_dim) + a.norm_epsilon);
    for (size_t i = 0; i < head_dim; ++i) head[i] = static_cast<float>(head[i] / root * norm[i]);
  }
}

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

void RopeKvRef(const RopeKvArgs& a, ThreadPool&) {
  const size_t head_dim = a.batch.head_dim, kv_heads = a.batch.kv_heads;
  for (size_t token = 0; token < a.batch.tokens; ++token) {
    float* q = a.q + token * a.heads * head_dim;
    float* k = a.k + token * kv_heads * head_dim;
    AddBias(a, a.q_bias, q, a.heads);
    AddBias(a, a.k_bias, k, kv_heads);
    AddBias(a, a.v_bias, a.v + token * kv_heads * head_dim, kv_heads);
    Normalize(a, a.q_norm, q, a.heads);
    Normalize(a, a.k_norm, k, kv_heads);
    Rotate(a, q, token, a.heads);
    Rotate(a, k, token, kv_heads);
  }
  WriteKv({.batch = a.batch, .keys = a.k, .values = a.v, .kv = a.kv});
}

}  // namespace terrace
