#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/attention/paged_attention.h"

namespace terrace {

void WriteKvRef(const WriteKvArgs& a) {
  const size_t head_dim = a.batch.head_dim;
  for (size_t token = 0; token < a.batch.tokens; ++token) {
    for (size_t head = 0; head < a.batch.kv_heads; ++head) {
      const size_t from = (token * a.batch.kv_heads + head) * head_dim;
      const size_t to = a.batch.RowOffset(token, head, a.batch.positions[token]);
      std::memcpy(a.key_pool + to, a.keys + from, head_dim * sizeof(float));
      std::memcpy(a.value_pool + to, a.values + from, head_dim * sizeof(float));
    }
  }
}

// The softmax in two passes over all positions, in double: the definition knows no chunks.
void PagedAttentionRef(const PagedAttentionArgs& a, ThreadPool&) {
  const size_t head_dim = a.batch.head_dim, group = a.heads / a.batch.kv_heads;
  std::vector<double> weights, out(head_dim);
  for (size_t token = 0; token < a.batch.tokens; ++token) {
    const size_t count = size_t{a.batch.positions[token]} + 1;
    weights.resize(count);
    for (size_t head = 0; head < a.heads; ++head) {
      const float* q = a.q + (token * a.heads + head) * head_dim;
      for (size_t j = 0; j < count; ++j) {
        const float* key = a.key_pool + a.batch.RowOffset(token, head / group, j);
        weights[j] = 0;
        for (size_t d = 0; d < head_dim; ++d) weights[j] += double{q[d]} * key[d];
        weights[j] *= a.scale;
      }
      const double largest = *std::max_element(weights.begin(), weights.end());
      double sum = 0;
      for (double& weight : weights) sum += weight = std::exp(weight - largest);
      std::fill(out.begin(), out.end(), 0);
      for (size_t j = 0; j < count; ++j) {
        const float* value = a.value_pool + a.batch.RowOffset(token, head / group, j);
        for (size_t d = 0; d < head_dim; ++d) out[d] += weights[j] / sum * value[d];
      }
      for (size_t d = 0; d < head_dim; ++d) {
        a.out[(token * a.heads + head) * head_dim + d] = static_cast<float>(out[d]);
      }
    }
  }
}

}  // namespace terrace
